"""Asks the admin API of a relay for all that its OpenAPI document allows, and for what it does not: fuzz.py BINARY

Schemathesis makes the requests, route by route and along the ids that answers give (an account, its keys, their revocation),
and checks that each answer is one that the document describes: its status, its type, its shape, and never a fault of the relay.
Afterwards the ledger must add up.
"""

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "sdk"))

from stage import Relay, spend  # noqa: E402
from upstream import Provider  # noqa: E402

TOKEN = "the-operators-own-token"

# Requests with a wrong token are a part of it, and are not to keep the others out.
MORE = """
[admin]
token = { env = "ADMIN_TOKEN" }

# A month that an account can pay.
[[plan]]
name = "monthly"
requests_per_minute = 60
price_usd = "0.01"

[limits]
failed_auth_per_minute_max = 1_000_000
"""

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
]


def document(admin):
    """The relay's own, narrowed to what this relay knows: a plan by chance is never one, and networks by chance hardly are."""
    request = urllib.request.Request(f"{admin}/admin/v1/openapi.json", headers={"authorization": f"Bearer {TOKEN}"})
    read = json.load(urllib.request.urlopen(request))
    schemas = read["components"]["schemas"]
    for name in "NewAccount", "AccountPatch":
        schemas[name]["properties"]["plan"]["enum"] = ["open"]
    for name in "NewSubscription", "SubscriptionPatch":
        schemas[name]["properties"]["plan"]["enum"] = ["open", "monthly"]
    schemas["KeyRequest"]["properties"]["allow_ip"]["items"]["enum"] = ["127.0.0.1", "203.0.113.0/24", "2001:db8::/32"]
    return read


def schemathesis(admin):
    # What it keeps between runs would make them differ.
    with tempfile.TemporaryDirectory(prefix="tollgate-schemathesis-") as folder:
        path = Path(folder) / "openapi.json"
        path.write_text(json.dumps(document(admin)))
        return subprocess.run(command(admin, path), cwd=folder, check=False).returncode


def command(admin, path):
    line = [str(Path(sys.executable).parent / "schemathesis"), "--no-color", "run", str(path), "--url", admin]
    line += ["--header", f"Authorization: Bearer {TOKEN}", "--checks", ",".join(CHECKS)]
    line += ["--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "100", "--seed", "1"]
    line += ["--request-timeout", "20", "--continue-on-failure", "--suppress-health-check", "all"]
    return line


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    upstream = Provider()
    upstream.start()
    with tempfile.TemporaryDirectory(prefix="tollgate-admin-") as folder:
        relay = Relay(str(Path(sys.argv[1]).resolve()), Path(folder), upstream.base_url, MORE, {"ADMIN_TOKEN": TOKEN})
        key = relay.key()["key"]
        try:
            relay.start()
            spend(f"http://127.0.0.1:{relay.http}/v1", key)
            status = schemathesis(f"http://127.0.0.1:{relay.admin}")
            if not relay.is_ready():
                status = 1
                print("the relay is not ready afterwards", file=sys.stderr)
            # It exits with 1, and ends this, where a balance is not the sum of its entries.
            relay.command("audit")
            if status != 0:
                print(f"--- the relay's log\n{(relay.folder / 'relay.log').read_text()[-20_000:]}", file=sys.stderr)
        finally:
            relay.stop()
    sys.exit(status)


if __name__ == "__main__":
    main()
