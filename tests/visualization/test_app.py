"""The page of explore.py serve: it makes what the commands make, and stays at home.

Needs Gradio, and the test in a browser Playwright and a Chromium; skipped without.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_generator

from explore import COMMANDS
from models import Generator
from utils import SettingsError, parse_settings

pytest.importorskip("gradio")
ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Yield the address of a page, which ends without an error and leaves no file."""
    folder = tmp_path_factory.mktemp("served")
    path = write_generator(folder / "a.pth", 3)
    temporary = folder / "temporary"
    temporary.mkdir()
    command = [sys.executable, ROOT / "explore.py", "serve", "--load_path", path, "--device", "cpu"]
    with (folder / "errors").open("w+") as errors:
        server = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True,
            env=os.environ | {"TMPDIR": str(temporary), "http_proxy": "http://192.0.2.1:9"},
        )  # fmt: skip
        try:
            line = server.stdout.readline()
            yield re.fullmatch(r"Serving (http://127.0.0.1:\d+/) until Ctrl-C\n", line)[1]
            server.send_signal(signal.SIGTERM)
            assert server.wait(600) == 128 + signal.SIGINT and not server.stdout.read()
        finally:
            server.kill()
            server.wait()
            server.stdout.close()
        errors.seek(0)
        assert errors.read() == "explore.py: interrupted\n"  # and no traceback
    assert not any(path.is_file() for path in temporary.rglob("*"))


@pytest.fixture(scope="module")
def client(served, tmp_path_factory):
    from gradio_client import Client

    return Client(served, verbose=False, download_files=tmp_path_factory.mktemp("downloaded"))


@pytest.mark.parametrize(
    ("name", "asked", "words"),
    [
        ("pick", ("2,7-9", 1.5, 0, 0, -2, 0, 0), "--seeds 2,7-9 --move 1:1.5,4:-2"),
        ("arithmetic", ("3,17 - 4 + 5,6",), "'3,17 - 4 + 5,6'"),
        ("walk", ("3,7,9", "straight", True, 4), "--seeds 3,7,9 --path straight --loop --frames 4"),
    ],
)
def test_an_image_is_that_of_the_line_beside_it(client, name, asked, words):
    image, line = client.predict(*asked, api_name=f"/{name}")
    assert line.startswith(f"python explore.py {name} ") and line.endswith(f"--scale 12 {words}")
    again = parse_settings(COMMANDS, None, [*shlex.split(line)[2:], "--device", "cpu"]).run()
    assert Path(image).read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("name", "asked", "says"),
    [
        ("/pick", ("missing.npy", *[0] * 6), "--seeds missing.npy: No such file"),
        ("/pick", ("0-9999", *[0] * 6), "10,000 images of 144x192 pixels are too many"),
        ("/arithmetic", ("3 -",), "expression 3 -: write it like"),
    ],
)
def test_mistakes_are_the_same_line_as_on_the_command_line(client, name, asked, says):
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match=re.escape(says)) as mistake:
        client.predict(*asked, api_name=name)
    assert "\n" not in str(mistake.value)


@pytest.mark.skipif(sys.platform != "linux", reason="only there, all of 127.0.0.0/8 is loopback")
def test_other_addresses_are_not_served(served):
    port = int(served.rstrip("/").rpartition(":")[2])
    with pytest.raises(OSError):
        socket.create_server(("127.0.0.1", port))
    socket.create_server(("127.0.0.2", port)).close()  # taken too, if all addresses were served


def test_an_address_that_cannot_be_had_is_one_line():
    from visualization.app import check_address, serve

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"--port {port}: Address already in use"):
            check_address("127.0.0.1", port)
        with pytest.raises(SettingsError, match=f"--port {port}: taken"):  # since then
            serve(lambda *asked, **more: "", Generator(8, 8, 1, 16), "127.0.0.1", port)
    check_address("127.0.0.1", port)
    with pytest.raises(SettingsError, match=r"--host 192\.0\.2\.1: "):
        check_address("192.0.2.1")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        found = next(filter(None, map(shutil.which, BROWSERS)), None)
        if not found and not Path(running.chromium.executable_path).exists():
            pytest.skip("no Chromium here")
        chromium = running.chromium.launch(executable_path=found)
        yield chromium
        chromium.close()


@pytest.mark.slow
def test_in_a_browser_a_slider_moves_the_image_and_nothing_is_fetched_elsewhere(served, browser):
    page = browser.new_page()
    addresses, mistakes = [], []
    page.on("request", lambda request: addresses.append(request.url))
    page.on("pageerror", lambda mistake: mistakes.append(mistake))
    page.goto(served)

    def size():
        return page.locator("img:visible").evaluate("i => i.decode().then(() => i.naturalWidth)")

    line = page.locator(".cm-content:visible")
    page.wait_for_function("document.querySelector('.cm-content')?.innerText.includes('0-24')")
    assert size() == 5 * (192 + 2) + 2  # a figure of 5x5
    number = page.get_by_label("number input for Direction 1")
    number.fill("3.5")
    number.blur()
    page.wait_for_function("document.querySelector('.cm-content').innerText.includes('1:3.5')")
    assert line.inner_text().strip().endswith("--seeds 0-24 --move 1:3.5")

    seeds = page.get_by_label("Seeds, such as")
    seeds.fill("a-b")
    seeds.press("Enter")
    page.get_by_text("--seeds a-b: write it like 3,17,40-49 or 3,photo.npy").wait_for()

    page.get_by_role("tab", name="Walk").click()
    page.locator("img:visible").wait_for()
    assert size() == 192 and "walk" in line.inner_text()
    assert not mistakes
    elsewhere = [a for a in addresses if not a.startswith((served, "data:", "blob:"))]
    assert len(addresses) > 10 and not elsewhere
