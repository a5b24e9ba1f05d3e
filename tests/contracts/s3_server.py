"""A small S3 server for the tests, run as a program of its own so that it can be killed: objects, ranges, listings, parts.

`python s3_server.py PORT FOLDER BUCKET KEY SECRET [CERTIFICATE KEYFILE]`. Every request must carry a right signature (AWS
Signature Version 4); what is stored survives a kill. It knows what the `Blobs` engine uses and answers 501 to the rest.
"""

import hashlib
import hmac
import json
import re
import ssl
import sys
import uuid
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape, unescape


class Shelf:
    """Objects as pairs of files, replaced atomically."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, key, body, facts):
        name = self._name(key)
        for suffix, content in ((".body", body), (".json", json.dumps({**facts, "key": key}).encode())):
            fresh = self.folder / (uuid.uuid4().hex + ".new")
            fresh.write_bytes(content if suffix == ".json" else hashlib.sha256(body).digest() + body)
            fresh.rename(self.folder / (name + suffix))

    def find(self, key):
        try:
            facts = json.loads((self.folder / (self._name(key) + ".json")).read_bytes())
            return facts, (self.folder / (self._name(key) + ".body")).read_bytes()[32:]
        except FileNotFoundError:
            return None

    def delete(self, key):
        for suffix in (".json", ".body"):
            (self.folder / (self._name(key) + suffix)).unlink(missing_ok=True)

    def keys(self):
        return sorted(json.loads(path.read_bytes())["key"] for path in self.folder.glob("*.json"))

    def _name(self, key):
        return hashlib.sha256(key.encode()).hexdigest()


UPLOADS = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    shelf = bucket = access = secret = None

    def log_message(self, *_arguments):
        pass

    def handle_any(self):
        self.body = self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = urlsplit(self.path)
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))
        if not self.signed(parts):
            return self.error(403, "SignatureDoesNotMatch")
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        if bucket != self.bucket:
            return self.error(404, "NoSuchBucket")
        match self.command:
            case "GET" if not key:
                return self.listing()
            case "GET" | "HEAD":
                return self.object(key)
            case "PUT" if "partNumber" in self.query:
                return self.part()
            case "PUT":
                self.shelf.put(key, self.body, self.facts(hashlib.md5(self.body).hexdigest()))
                return self.answer(200, etag=hashlib.md5(self.body).hexdigest())
            case "POST" if "uploads" in self.query:
                return self.begin(key)
            case "POST" if "uploadId" in self.query:
                return self.complete(key)
            case "POST" if "delete" in self.query:
                return self.delete_many()
            case "DELETE":
                self.shelf.delete(key)
                return self.answer(204)
        return self.error(501, "NotImplemented")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815 - names of http.server

    def object(self, key):
        found = self.shelf.find(key)
        if found is None:
            return self.error(404, "NoSuchKey")
        facts, body = found
        status, extra = 200, {}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or "")
        if asked:
            start, last = int(asked[1]), int(asked[2] or len(body) - 1)
            if start >= len(body):
                return self.error(416, "InvalidRange")
            last = min(last, len(body) - 1)
            extra["content-range"] = f"bytes {start}-{last}/{len(body)}"
            status, body = 206, body[start : last + 1]
        extra |= {name: value for name, value in facts.items() if name.startswith("x-amz-meta-")}
        return self.answer(status, body, facts["type"], facts["etag"], extra)

    def listing(self):
        prefix, after = self.query.get("prefix", ""), self.query.get("start-after", "")
        after = max(after, self.query.get("continuation-token", ""))
        found = [key for key in self.shelf.keys() if key.startswith(prefix) and key > after]  # noqa: SIM118 - a method
        most = int(self.query.get("max-keys", "3"))  # few, so that clients have to go on
        cut, found = len(found) > most, found[:most]
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;x&quot;</ETag><Size>{len(self.shelf.find(key)[1])}</Size></Contents>"
            for key in found
        )
        token = f"<NextContinuationToken>{escape(found[-1])}</NextContinuationToken>" if cut else ""
        self.xml(f"<ListBucketResult><IsTruncated>{str(cut).lower()}</IsTruncated>{token}{rows}</ListBucketResult>")

    def begin(self, key):
        upload = uuid.uuid4().hex
        UPLOADS[upload] = ({}, self.facts(""))
        self.xml(
            f"<InitiateMultipartUploadResult><Bucket>{self.bucket}</Bucket><Key>{escape(key)}</Key>"
            f"<UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
        )

    def part(self):
        parts, _ = UPLOADS[self.query["uploadId"]]
        parts[int(self.query["partNumber"])] = self.body
        self.answer(200, etag=hashlib.md5(self.body).hexdigest())

    def complete(self, key):
        parts, facts = UPLOADS.pop(self.query["uploadId"])
        wanted = [int(number) for number in re.findall(rb"<PartNumber>(\d+)</PartNumber>", self.body)]
        body = b"".join(parts[number] for number in wanted)
        etag = f"{hashlib.md5(body).hexdigest()}-{len(wanted)}"
        self.shelf.put(key, body, {**facts, "etag": etag})
        self.xml(f"<CompleteMultipartUploadResult><ETag>&quot;{etag}&quot;</ETag></CompleteMultipartUploadResult>")

    def delete_many(self):
        keys = re.findall(r"<Key>(.*?)</Key>", self.body.decode())
        for key in keys:
            self.shelf.delete(unescape(key))
        self.xml(f"<DeleteResult>{''.join(f'<Deleted><Key>{key}</Key></Deleted>' for key in keys)}</DeleteResult>")

    def facts(self, etag):
        meta = {name.lower(): value for name, value in self.headers.items() if name.lower().startswith("x-amz-meta-")}
        return {"type": self.headers.get("content-type", "application/octet-stream"), "etag": etag, **meta}

    def xml(self, text):
        self.answer(200, f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode(), "application/xml")

    def error(self, status, code):
        text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
        self.answer(status, text.encode(), "application/xml")

    def answer(self, status, body=b"", kind="application/xml", etag="", extra=()):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("content-type", kind)
        self.send_header("last-modified", formatdate(usegmt=True))
        if etag:
            self.send_header("etag", f'"{etag}"')
        for name, value in dict(extra).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def signed(self, parts):
        """Whether the signature is the one our secret makes."""
        given = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=([^/]+)/([^,]+), ?SignedHeaders=([^,]+), ?Signature=([0-9a-f]{64})",
            self.headers.get("authorization") or "",
        )
        if given is None or given[1] != self.access:
            return False
        names = given[3].split(";")
        headers = "".join(f"{name}:{' '.join((self.headers.get(name) or '').split())}\n" for name in names)
        query = "&".join(
            sorted(
                f"{quote(k, safe='~')}={quote(v, safe='~')}" for k, v in parse_qsl(parts.query, keep_blank_values=True)
            )
        )
        hashed = self.headers["x-amz-content-sha256"]
        if hashed != "UNSIGNED-PAYLOAD" and hashed != hashlib.sha256(self.body).hexdigest():
            return False
        request = "\n".join([self.command, quote(unquote(parts.path), safe="/~"), query, headers, given[3], hashed])
        text = "\n".join(
            ["AWS4-HMAC-SHA256", self.headers["x-amz-date"], given[2], hashlib.sha256(request.encode()).hexdigest()]
        )
        key = f"AWS4{self.secret}".encode()
        for part in given[2].split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        return hmac.compare_digest(hmac.new(key, text.encode(), "sha256").hexdigest(), given[4])


def main(port, folder, bucket, access, secret, *tls):
    Handler.shelf, Handler.bucket, Handler.access, Handler.secret = Shelf(Path(folder)), bucket, access, secret
    ThreadingHTTPServer.request_queue_size = 64
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
