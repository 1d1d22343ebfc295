"""What a person at a terminal sees, by a pseudo-terminal."""

import base64
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import termios
import threading

import pytest
import requests

from emulators.pictures import look
from gateway import binary, eventually, run

def needs(program):
    """`./test` installs it where it can."""
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")


FREE_PORTS = {f"IMAGEGATE_LISTEN_{role}": "127.0.0.1:0" for role in ("HTTP", "GRPC", "ADMIN")}


class Terminal:
    """The binary behind a pseudo-terminal of 80 columns and 24 rows."""

    def __init__(self, args, cwd, env):
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(ours, (24, 80))
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LLVM_PROFILE_FILE") if name in os.environ}
        streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        self._process = subprocess.Popen([binary(), *map(str, args)], cwd=cwd, env={**kept, **env}, **streams)
        os.close(theirs)
        self._ours, self._bytes = ours, b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        # Linux says EIO where all who could write have gone.
        try:
            while some := os.read(self._ours, 65536):
                self._bytes += some
        except OSError:
            pass

    def shown(self):
        return self._bytes.decode(errors="replace")

    def lines(self):
        """What is shown, without its colours."""
        return re.sub("\x1b\\[[\\d;]*m", "", self.shown()).splitlines()

    def interrupt(self):
        self._process.send_signal(signal.SIGINT)

    def end(self):
        code = self._process.wait(timeout=30)
        self._reader.join(timeout=30)
        os.close(self._ours)
        return code

    def kill(self):
        if self._process.poll() is None:
            self._process.kill()
            self.end()


@pytest.fixture
def offline(start):
    """A gateway without a file: it draws placeholder art."""
    return start("serve", env=FREE_PORTS)


@pytest.fixture
def terminal(offline, tmp_path):
    """Runs a command that asks the gateway: `terminal("logs", "-f")`."""
    opened = []

    def terminal(*args, **env):
        args = [*args, "--router", "http://" + offline.address("grpc")]
        opened.append(Terminal(args, tmp_path, {"TERM": "xterm-256color", **env}))
        return opened[-1]

    yield terminal
    for one in opened:
        one.kill()


@pytest.fixture
def generated(terminal):
    """What `generate` shows, when it is over."""

    def generated(*args, **env):
        made = terminal("generate", "a red fox", "--size", "512x512", "-o", "fox.png", *args, **env)
        assert made.end() == 0, made.shown()
        assert "fox.png (512x512 png)" in made.shown()
        return made.shown()

    return generated


def test_kitty_is_shown_the_image(generated):
    shown = generated(TERM="xterm-kitty")
    pieces = re.findall("\x1b_G([^;]*);([^\x1b]*)\x1b\\\\", shown)
    assert pieces[0][0].startswith("a=T,f=100,q=2,c=24,r=12,") and pieces[-1][0].endswith("m=0")
    picture = look(base64.b64decode("".join(data for _, data in pieces)))
    assert (picture.format, picture.width, picture.height) == ("PNG", 192, 192)


def test_iterm_is_shown_the_image(generated):
    shown = generated(TERM_PROGRAM="iTerm.app")
    [data] = re.findall("\x1b]1337;File=inline=1;[^:]*width=24;height=12[^:]*:([^\x07]*)\x07", shown)
    assert look(base64.b64decode(data)).size == (192, 192)


def test_a_terminal_with_sixel_is_shown_the_image(generated):
    shown = generated(TERM="foot")
    assert re.search("\x1bP[0-9;]*q[^\x1b]*\x1b\\\\", shown) and "▀" not in shown


@pytest.mark.parametrize(("env", "colour"), [({"COLORTERM": "truecolor"}, "38;2;"), ({}, "38;5;")])
def test_any_other_terminal_is_shown_half_blocks(generated, env, colour):
    lines = [line for line in generated(**env).splitlines() if "▀" in line]
    assert len(lines) == 12 and all(line.count("▀") == 24 and colour in line for line in lines)


def test_a_person_chooses_how_the_image_is_shown(generated):
    assert "▀" in generated("--preview", "blocks", TERM="xterm-kitty")


@pytest.mark.parametrize(
    ("flags", "env"),
    [((), {"NO_COLOR": "1"}), ((), {"TERM": "dumb"}), (("--no-preview",), {}), (("--preview", "off"), {})],
)
def test_nothing_is_shown_where_nobody_wants_it(generated, flags, env):
    shown = generated(*flags, **env)
    assert "▀" not in shown and "\x1b_G" not in shown and "\x1bP" not in shown


def test_without_a_terminal_there_is_no_escape(offline, tmp_path):
    router = "http://" + offline.address("grpc")
    made = run(["generate", "a red fox", "-o", "fox.png", "--preview", "kitty", "--router", router], tmp_path)
    assert made.returncode == 0 and "\x1b" not in made.stdout
    assert made.stderr.startswith("answered by") and "\x1b" not in made.stderr and "\r" not in made.stderr


def test_a_fallback_is_shown_with_its_cause_and_billing(generated):
    shown = generated("--config-id", "demo-fallback", "--no-preview")
    [failed, answered] = [line for line in shown.splitlines() if "config.targets[" in line and "answered" not in line]
    assert "503" in failed and "targets[0]" in failed and " unknown " in failed
    assert " ok" in answered and "targets[1]" in answered


def test_ctrl_c_cancels_the_request(terminal, offline):
    made = terminal("generate", "a red fox", "--model", "sandbox-slow-60000", "-o", "fox.png")
    eventually(lambda: "asking" in made.shown() or "%" in made.shown(), what="the progress line")
    metrics = f"http://{offline.address('admin')}/metrics"
    in_flight = lambda: "\nimagegate_requests_in_flight 1\n" in requests.get(metrics, timeout=10).text
    eventually(in_flight, what="the request at the router")
    made.interrupt()
    assert made.end() == 130
    assert "cancelled" in made.shown()
    hidden, seen = made.shown().rfind("\x1b[?25l"), made.shown().rfind("\x1b[?25h")
    assert seen >= hidden, "the cursor is hidden"
    offline.wait_for_log(lambda fields: fields.get("message") == "request" and fields.get("outcome") == "cancelled")


def test_generate_tells_programs_what_happened(offline, tmp_path):
    router = "http://" + offline.address("grpc")
    args = ["generate", "a red fox", "--config-id", "demo-fallback", "-o", "fox.png", "--json", "--router", router]
    told = json.loads(run(args, tmp_path).stdout)
    assert [image["file"] for image in told["images"]] == ["fox.png"]
    assert [attempt["status"] for attempt in told["attempts"]][0] == 503


def test_generate_writes_the_image_to_standard_output(offline, tmp_path):
    router = "http://" + offline.address("grpc")
    args = [binary(), "generate", "a red fox", "--size", "64x64", "-o", "-", "--router", router]
    made = subprocess.run(args, cwd=tmp_path, capture_output=True, timeout=60)
    assert made.returncode == 0, made.stderr
    assert look(made.stdout).size == (64, 64)
    refused = run(["generate", "a red fox", "-o", "-", "-n", "2", "--router", router], tmp_path)
    assert refused.returncode == 1 and "-n" in refused.stderr


def test_following_the_log_outlives_the_routers_restart(start, tmp_path):
    def serve(port):
        return start("serve", env={**FREE_PORTS, "IMAGEGATE_LISTEN_GRPC": f"127.0.0.1:{port}"})

    first = start("serve", env=FREE_PORTS)
    address = first.address("grpc")
    follower = Terminal(["logs", "-f", "--router", "http://" + address], tmp_path, {"TERM": "xterm"})
    try:
        run(["generate", "one", "-o", "one.png", "--router", "http://" + address], tmp_path)
        eventually(lambda: "sandbox" in follower.shown(), what="the request")
        first.terminate()
        first.wait()
        eventually(lambda: "does not answer" in follower.shown(), what="the outage")
        second = serve(address.rsplit(":", 1)[1])
        assert second.address("grpc") == address
        eventually(lambda: "answers again" in follower.shown(), what="the end of the outage")
        before = follower.shown().count("sandbox")
        run(["generate", "two", "-o", "two.png", "--router", "http://" + address], tmp_path)
        eventually(lambda: follower.shown().count("sandbox") > before, what="the request after it")
    finally:
        follower.interrupt()
        follower.kill()


@pytest.fixture
def served(tmp_path):
    """A gateway without a file at a terminal: `served("--preview")`. With its address for HTTP once it is there."""
    opened = []

    def served(*args, **env):
        opened.append(Terminal(["serve", *args], tmp_path, {"TERM": "xterm-256color", **FREE_PORTS, **env}))
        shown = lambda: "\n".join(opened[-1].lines())
        found = eventually(lambda: re.search(r"OpenAI API +(http://[\d.:]+)/v1\n|listening role=.http.", shown()), what="its address")
        return opened[-1], found[1]

    yield served
    for one in opened:
        one.kill()


def ask(url, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"prompt": "a red fox", "size": "256x256"}
    return requests.post(url + "/v1/images/generations", json=body, headers=headers, timeout=30)


def test_serve_shows_a_person_where_it_is_and_each_request_as_it_ends(served):
    gateway, url = served()
    row = lambda status: [line for line in gateway.lines() if re.match(rf"\d\d:\d\d:\d\dZ  {status}  ", line)]
    assert "demo (default), demo-fallback" in gateway.shown() and f"curl {url}/v1/images" in gateway.shown()
    assert ask(url, x_portkey_config="demo-fallback").ok
    assert ask(url, x_portkey_config="nowhere").status_code == 404
    assert ask(url, x_portkey_config='{"provider": "sandbox", "override_params": {"model": "sandbox-fail-503"}}').status_code == 503
    eventually(lambda: row(503), what="the last request")
    [rescued], [missing], [failed] = row(200), row(404), row(503)
    words = ["200", "generate", "256x256", "sandbox/sandbox-1"]
    assert rescued.split()[1:5] == words and rescued.endswith("  unknown  fallback calls:2"), rescued
    assert missing.split()[1:5] == ["404", "-", "-", "-"] and missing.endswith('config "nowhere" does not exist'), missing
    assert "sandbox/sandbox-fail-503" in failed, failed
    assert any("WARN" in line and "another target answered" in line for line in gateway.lines())
    assert "INFO" not in gateway.shown() and "▀" not in gateway.shown()
    gateway.interrupt()
    assert gateway.end() == 0
    assert "stopping" in gateway.lines()[-1], gateway.shown()


def test_serve_shows_a_person_small_images_who_wants_them(served):
    gateway, url = served("--preview")
    assert ask(url).ok
    # Six lines, below the line of the request.
    eventually(lambda: gateway.shown().count("▀") == 6 * 12, what="the image")
    assert gateway.shown().index("256x256") < gateway.shown().index("▀")


def test_serve_writes_log_lines_at_a_terminal_too_if_somebody_wants_them(served):
    gateway, _ = served("--log-format", "text")
    assert "INFO" in gateway.shown() and "OpenAI API" not in gateway.shown()


def test_serve_writes_log_lines_where_there_is_no_terminal(tmp_path):
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LLVM_PROFILE_FILE") if name in os.environ}
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    served = subprocess.Popen([binary(), "serve"], cwd=tmp_path, env={**kept, **FREE_PORTS}, text=True, **pipes)
    try:
        line = served.stderr.readline()
    finally:
        served.kill()
        out, rest = served.communicate(timeout=10)
    assert "INFO" in line and "listening" in line and "OpenAI API" not in line + rest and out == ""


def test_bash_completes_commands_and_flags(tmp_path):
    script = tmp_path / "imagegate.bash"
    script.write_text(run(["completions", "bash"], tmp_path).stdout)
    asked = """
        source "$1"; COMP_WORDS=("${@:2}"); COMP_CWORD=$(($# - 2))
        _imagegate imagegate "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"; echo "${COMPREPLY[@]}"
    """

    def completed(*words):
        called = subprocess.run(["bash", "-c", asked, "bash", script, *words], capture_output=True, text=True)
        assert called.returncode == 0, called.stderr
        return called.stdout.split()

    assert completed("imagegate", "gen") == ["generate"]
    assert completed("imagegate", "generate", "--prev") == ["--preview"]
    assert {"kitty", "iterm", "sixel", "blocks"} <= set(completed("imagegate", "generate", "--preview", ""))


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_their_scripts(shell, tmp_path):
    needs(shell)
    script = tmp_path / "script"
    script.write_text(run(["completions", shell], tmp_path).stdout)
    assert subprocess.run([shell, "-n", script], capture_output=True, text=True).returncode == 0


def test_there_is_a_manual_page_for_every_command(tmp_path):
    assert ".TH imagegate 1" in run(["man"], tmp_path).stdout
    assert run(["man", "--dir", "man1"], tmp_path).returncode == 0
    pages = {page.name for page in (tmp_path / "man1").iterdir()}
    assert {"imagegate.1", "imagegate-generate.1", "imagegate-logs.1", "imagegate-keys-api-create.1"} <= pages


def test_groff_has_nothing_to_say_about_the_manual_pages(tmp_path):
    needs("groff")
    assert run(["man", "--dir", "man1"], tmp_path).returncode == 0
    for page in sorted((tmp_path / "man1").iterdir()):
        checked = subprocess.run(["groff", "-man", "-ww", "-z", "-Tutf8", page], capture_output=True, text=True, timeout=30)
        assert (checked.returncode, checked.stderr) == (0, ""), page.name
