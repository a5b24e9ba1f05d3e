"""The API against its own description: schemathesis invents requests, good and bad, and compares every answer with OpenAPI.

The tool is no dependency of this project; the test runs where it is found (on the PATH, or named by FOURPLANE_SCHEMATHESIS):
`pipx install schemathesis`.
"""

import asyncio
import os
import shutil

import pytest
from tests.journeys.commerce.rig import shop

TOOL = os.environ.get("FOURPLANE_SCHEMATHESIS") or shutil.which("schemathesis") or ""
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.slow
@pytest.mark.skipif(not TOOL, reason="schemathesis is not installed (pipx install schemathesis)")
def test_invented_requests_are_answered_as_described(tmp_path):
    async def main():
        async with shop(described=True) as s:
            operator = await s.accounts.create("operator", "a long enough password", roles=("operator",))
            token = await s.accounts.open_session(operator)
            process = await asyncio.create_subprocess_exec(
                TOOL, "run", f"http://127.0.0.1:{s.server.port}/openapi.json", "--include-path-regex", "^/commerce/api/",
                "--header", f"Authorization: Bearer {token}", "--header", "Idempotency-Key: attempt-0001",
                "--checks", CHECKS, "--max-examples", os.environ.get("FOURPLANE_EXAMPLES", "20"), "--seed", "1",
                "--phases", "examples,coverage,fuzzing", "--no-color",
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=tmp_path,
            )  # fmt: skip
            told, _ = await process.communicate()
            assert process.returncode == 0, told.decode()[-6_000:]
            assert s.commerce.statistics().placed >= 0

    asyncio.run(main())
