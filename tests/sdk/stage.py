"""Runs a command beside a relay: stage.py BINARY -- COMMAND…

Starts the scripted provider and `BINARY serve` in a temporary folder, makes accounts and keys with the binary's own commands,
and runs COMMAND with all of it in its environment. The exit status is COMMAND's; both processes end with this one.

    TOLLGATE_BASE_URL   the client API, `/v1` included
    TOLLGATE_KEYS       a JSON object: `good`, `poor` (no credit), `narrow` (one model), `spent` (no request left in its
                        minute), `retried` (whose account has no other requests), `revoked`
    TOLLGATE_STORE      the store's file
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from upstream import CREDENTIAL, Provider

START_SECONDS_MAX = 30

CONFIGURATION = """
[listen]
http = "127.0.0.1:{http}"
admin = "127.0.0.1:{admin}"
metrics = "127.0.0.1:{metrics}"

[store]
url = "sqlite://{folder}/tollgate.db"

[billing]
spool = "{folder}/spool.db"

[[plan]]
name = "open"
requests_per_minute = 100_000

[[provider]]
name = "scripted"
dialect = "openai"
base_url = "{upstream}/v1"
credentials = [{{ env = "PROVIDER_KEY" }}]
# It fails when it is told to, and is to be asked again.
breaker = false

[[provider]]
name = "anthropic"
dialect = "anthropic"
base_url = "{upstream}"
credentials = [{{ env = "PROVIDER_KEY" }}]

[[provider]]
name = "gemini"
dialect = "gemini"
base_url = "{upstream}"
credentials = [{{ env = "PROVIDER_KEY" }}]
"""

MODEL = """
[[model]]
id = "{id}"
context_window = 128_000
output_tokens_max = 16_384
owned_by = "tests"
price = {{ input = "1.00", output = "2.00" }}
{rules}
targets = [{{ provider = "{provider}", model = "model-at-the-provider", weight = 1, tier = 0 }}]
"""

MODELS = ["test-model", "vendor/family/model-1"]
# Models of other dialects, with their rules: two that differ in how they are held to a schema.
TRANSLATED = {
    "claude": ("anthropic", 'thinking = "adaptive"\nsampling = "one_of"\nschema_with_tools = true'),
    "claude-older": ("anthropic", 'thinking = { form = "budget", min = 1_024, max = 8_192 }\nschema = "forced_tool"'),
    "gemini": ("gemini", 'thinking = { form = "budget", min = 0, max = 8_192 }'),
}


def free_ports(count):
    """Ports that are free now; the relay says so when another process takes one first."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Relay:
    def __init__(self, binary, folder, upstream, more="", environment=None):
        self.binary, self.folder = binary, folder
        self.http, self.admin, metrics = free_ports(3)
        text = CONFIGURATION.format(http=self.http, admin=self.admin, metrics=metrics, folder=folder, upstream=upstream)
        models = [MODEL.format(id=model, provider="scripted", rules="") for model in MODELS]
        models += [MODEL.format(id=model, provider=name, rules=rules) for model, (name, rules) in TRANSLATED.items()]
        (folder / "tollgate.toml").write_text(text + "".join(models) + more)
        self.environment = {"PATH": os.environ["PATH"], "PROVIDER_KEY": CREDENTIAL, **(environment or {})}
        self.process = None

    def command(self, *arguments):
        line = [self.binary, *arguments, "--config", "tollgate.toml", "--json"]
        done = subprocess.run(line, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"stage.py: {' '.join(arguments)}: {done.stderr or done.stdout}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def key(self, *options, dollars="10"):
        account = self.command("account", "create", "SDK tests", "--plan", "open")["id"]
        if dollars:
            self.command("account", "credit", account, dollars)
        return self.command("key", "create", "--account", account, "--name", "sdk", *options)

    def start(self):
        log = (self.folder / "relay.log").open("w")
        line = [self.binary, "serve", "--config", "tollgate.toml"]
        self.process = subprocess.Popen(line, cwd=self.folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
        end = time.monotonic() + START_SECONDS_MAX
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > end:
                sys.exit(f"stage.py: the relay is not ready:\n{(self.folder / 'relay.log').read_text()}")
            time.sleep(0.05)

    def is_ready(self):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/readyz", timeout=5).status == 200
        except OSError:
            return False

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()


def main():
    binary, separator, *command = sys.argv[1:]
    if separator != "--" or not command:
        sys.exit(__doc__)
    # The end of the runner must not leave the relay behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    upstream = Provider()
    upstream.start()
    with tempfile.TemporaryDirectory(prefix="tollgate-sdk-") as folder:
        relay = Relay(str(Path(binary).resolve()), Path(folder), upstream.base_url)
        revoked = relay.key()
        relay.command("key", "revoke", revoked["id"])
        keys = {
            "good": relay.key()["key"],
            "poor": relay.key(dollars=None)["key"],
            "narrow": relay.key("--models", MODELS[1])["key"],
            "spent": relay.key("--rpm", "1")["key"],
            "retried": relay.key()["key"],
            "revoked": revoked["key"],
        }
        base_url = f"http://127.0.0.1:{relay.http}/v1"
        try:
            relay.start()
            spend(base_url, keys["spent"])
            environment = {
                **os.environ,
                "TOLLGATE_BASE_URL": base_url,
                "TOLLGATE_KEYS": json.dumps(keys),
                "TOLLGATE_STORE": str(relay.folder / "tollgate.db"),
            }
            status = subprocess.run(command, env=environment, check=False).returncode
            if status != 0:
                print(f"--- the relay's log\n{(relay.folder / 'relay.log').read_text()[-20_000:]}", file=sys.stderr)
        finally:
            relay.stop()
    sys.exit(status)


def spend(base_url, key):
    """Uses up the one request a minute of a key."""
    body = json.dumps({"model": MODELS[0], "messages": [{"role": "user", "content": "x"}]}).encode()
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{base_url}/chat/completions", body, headers)).read()


if __name__ == "__main__":
    main()
