"""Slow clients by the thousand beside one good client: run.py BINARY

Starts `BINARY serve` with the built-in demo provider in a temporary folder, and measures how long chats of a good client take, each on
a connection of its own: first alone, then while slowhttptest holds 1,000 connections with slow heads, slow bodies (with a good key, so
that they are read) and slow reads of a large answer. Prints the figures.

Fails when a good request fails, or when the slowest in a hundred takes longer than five times what it took alone and 50 ms more. The
machine is shared with slowhttptest itself, and often with others: what is aimed at, twice as long, is printed as a ratio.
Exit status 77: slowhttptest is not installed.
"""

import http.client
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "sdk"))
from stage import free_ports  # noqa: E402

CONNECTIONS = 1_000
ALONE_SECONDS, BESIDE_SECONDS = 6, 8
START_SECONDS_MAX = 30
RATIO_MAX, GRACE_MS = 5, 50
SKIPPED = 77

CONFIGURATION = """
[listen]
http = "127.0.0.1:{http}"
admin = "127.0.0.1:{admin}"
metrics = "127.0.0.1:{metrics}"

[store]
url = "sqlite://{folder}/tollgate.db"

[billing]
spool = "{folder}/spool.db"

[limits]
# All of them come from this machine's address.
connections_per_ip_max = 100_000

[[plan]]
name = "open"
requests_per_minute = 1_000_000

[[provider]]
name = "demo"
dialect = "openai"
base_url = "builtin:demo"
"""

MODEL = """
[[model]]
id = "model-{number}"
context_window = 128_000
output_tokens_max = 16_384
owned_by = "tests"
price = {{ input = "1.00", output = "2.00" }}
targets = [{{ provider = "demo", model = "demo", weight = 1, tier = 0 }}]
"""
# Their list is what is read slowly: larger than the buffers on its way.
MODELS = 2_000


class Relay:
    def __init__(self, binary, folder):
        self.binary, self.folder = binary, folder
        self.http, self.admin, self.metrics = free_ports(3)
        text = CONFIGURATION.format(http=self.http, admin=self.admin, metrics=self.metrics, folder=folder)
        models = "".join(MODEL.format(number=number) for number in range(MODELS))
        (folder / "tollgate.toml").write_text(text + models)
        self.environment = {"PATH": os.environ["PATH"]}
        account = self.command("account", "create", "Slow tests", "--plan", "open")["id"]
        self.command("account", "credit", account, "1000")
        self.key = self.command("key", "create", "--account", account, "--name", "slow")["key"]
        log = (folder / "relay.log").open("w")
        line = [binary, "serve", "--config", "tollgate.toml"]
        self.process = subprocess.Popen(line, cwd=folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
        until("the relay to be ready", START_SECONDS_MAX, self.is_ready)

    def command(self, *arguments):
        line = [self.binary, *arguments, "--config", "tollgate.toml", "--json"]
        done = subprocess.run(line, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"run.py: {' '.join(arguments)}: {done.stderr or done.stdout}")
        return json.loads(done.stdout)

    def is_ready(self):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/readyz", timeout=5).status == 200
        except OSError:
            return False

    def gauge(self, name):
        page = urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=5).read().decode()
        return next(int(line.split()[1]) for line in page.splitlines() if line.startswith(f"{name} "))

    def connections(self):
        return self.gauge("tollgate_connections_open")

    def chat(self):
        """One chat on a connection of its own: its milliseconds, or None when it failed."""
        body = json.dumps({"model": "model-0", "messages": [{"role": "user", "content": "Say hello"}]})
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json", "Connection": "close"}
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=30)
        began = time.perf_counter()
        try:
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            answer.read()
            return (time.perf_counter() - began) * 1000 if answer.status == 200 else None
        except OSError:
            return None
        finally:
            connection.close()

    def stop(self):
        self.process.kill()
        self.process.wait()


def until(what, seconds, ask):
    end = time.monotonic() + seconds
    while not ask():
        if time.monotonic() > end:
            sys.exit(f"run.py: waited {seconds} s in vain: {what}")
        time.sleep(0.05)


def measure(relay, seconds):
    """Chats one after the other for so long: the milliseconds of those that succeeded, sorted, and how many failed."""
    end, times, failed = time.monotonic() + seconds, [], 0
    while time.monotonic() < end:
        took = relay.chat()
        if took is None:
            failed += 1
        else:
            times.append(took)
    return sorted(times), failed


def percentile(times, part):
    return times[min(len(times) - 1, int(len(times) * part))] if times else float("inf")


def attacks(relay):
    """What slowhttptest is told, by what it does. A value of its own may hold a line end, which is how a key gets in."""
    keyed = f"*/*\r\nAuthorization: Bearer {relay.key}"
    url = f"http://127.0.0.1:{relay.http}/v1"
    return {
        "slow heads": ["-H", "-i", "1", "-x", "24", "-t", "GET", "-u", f"{url}/models"],
        "slow bodies": ["-B", "-i", "1", "-s", "8192", "-x", "10", "-t", "POST", "-m", keyed, "-u", f"{url}/chat/completions"],
        "slow reads": ["-X", "-w", "512", "-y", "1024", "-n", "1", "-z", "32", "-k", "3", "-m", keyed, "-u", f"{url}/models"],
    }


def beside(relay, arguments):
    """The measure while slowhttptest runs, how many connections it held at its best, and how many requests were under way."""
    line = ["slowhttptest", "-c", str(CONNECTIONS), "-r", str(CONNECTIONS), "-l", "60", "-v", "0", *arguments]
    attack = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    held = 0
    try:
        end = time.monotonic() + 5
        while held < CONNECTIONS * 0.9 and time.monotonic() < end:
            held = max(held, relay.connections())
            time.sleep(0.1)
        times, failed = measure(relay, BESIDE_SECONDS)
        return times, failed, max(held, relay.connections()), relay.gauge("tollgate_requests_in_flight")
    finally:
        os.killpg(attack.pid, signal.SIGKILL)
        attack.wait()


def main():
    binary = Path(sys.argv[1]).resolve() if len(sys.argv) == 2 else sys.exit(__doc__)
    if shutil.which("slowhttptest") is None:
        print("slowhttptest is not installed")
        sys.exit(SKIPPED)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    wrong = []
    with tempfile.TemporaryDirectory(prefix="tollgate-slow-") as folder:
        relay = Relay(str(binary), Path(folder))
        try:
            measure(relay, 1)
            times, failed = measure(relay, ALONE_SECONDS)
            alone = percentile(times, 0.99)
            print(f"alone: {len(times)} chats, p50 {percentile(times, 0.5):.2f} ms, p99 {alone:.2f} ms, {failed} failed")
            for name, arguments in attacks(relay).items():
                until("the connections to be over", 60, lambda: relay.connections() < 10)
                times, failed, held, in_flight = beside(relay, arguments)
                p99 = percentile(times, 0.99)
                print(
                    f"beside {held} {name} ({in_flight} under way): {len(times)} chats, p50 {percentile(times, 0.5):.2f} ms, "
                    f"p99 {p99:.2f} ms, {p99 / alone:.2f} times alone, {failed} failed"
                )
                if failed or not times:
                    wrong.append(f"{name}: {failed} of the good client's chats failed")
                if p99 > max(RATIO_MAX * alone, alone + GRACE_MS):
                    wrong.append(f"{name}: p99 {p99:.2f} ms against {alone:.2f} ms alone")
                if held < CONNECTIONS * 0.9:
                    wrong.append(f"{name}: only {held} slow connections were held")
        finally:
            relay.stop()
    for what in wrong:
        print(f"wrong: {what}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
