"""The page of `explore.py serve`: seeds and directions, arithmetic, walks.

Needs Gradio, an optional requirement. The page asks no other machine for anything.
"""

from __future__ import annotations

import html
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from torch import nn

from utils import SettingsError

SLIDERS = 6
FARTHEST = 6  # distance that a slider moves; beyond, images hardly change any more
SHOWN = 192  # pixels, to which smaller images are enlarged
OLD = 3600  # seconds, after which an image is deleted
STYLE = "img { image-rendering: pixelated }"

MakeFile = Callable[..., str]  # see `build`


def check_address(host: str, port: int | None = None) -> None:
    """Refuse an address that is not this machine's, or a port that is taken.

    Gradio tries an impossible address for minutes.

    Raises:
        SettingsError: naming --host or --port.
    """
    try:
        socket.create_server((host, port or 0)).close()
    except OSError as error:
        where = f"--host {host}" + f" --port {port}" * bool(port)
        raise SettingsError(f"{where}: {error.strerror}") from None


def serve(
    make_file: MakeFile,
    generator: nn.Module,
    host: str,
    port: int | None = None,
    browser: bool = False,
) -> None:
    """Serve the page until Ctrl-C, without `port` at the first that is free from 7860 on.

    Raises:
        SettingsError: Gradio is too old, or found no port.
        KeyboardInterrupt: by Ctrl-C or SIGTERM.
    """
    if int(gr.__version__.partition(".")[0]) < 6:
        raise SettingsError("serve needs Gradio 6 or newer: pip install --upgrade gradio")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # Gradio asks itself whether it runs, which is nothing to ask a proxy.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "no_proxy": "*"}
        os.environ["GRADIO_TEMP_DIR"] = os.path.join(folder, "shown")
        page = build(make_file, generator, Path(folder))
        try:
            page.launch(
                server_name=host, server_port=port, inbrowser=browser, share=False, ssr_mode=False,
                prevent_thread_lock=True, quiet=True, css=STYLE, footer_links=[],
            )  # fmt: skip
        except OSError as error:
            tried = port or "7860 to 7959"
            raise SettingsError(f"--port {tried}: taken; choose another") from error
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        print(f"Serving {page.local_url} until Ctrl-C", flush=True)
        while True:
            time.sleep(1)


def build(make_file: MakeFile, generator: nn.Module, folder: Path) -> gr.Blocks:
    """Build the page: a tab and an API function for each of three commands.

    Args:
        make_file: takes a command's name, a file to write and the command's settings, and returns
            the line that makes it again. Its SettingsErrors are shown on the page.
        generator: whose latents the sliders move.
        folder: takes the newest image of each tab.
    """
    sliders = range(1, min(SLIDERS, generator.z_dim) + 1)
    forms = {  # the components of each command, by the names of its settings
        "pick": {
            "seeds": gr.Textbox("0-24", label="Seeds, such as 5 or 0-24,100"),
            **{i: gr.Slider(-FARTHEST, FARTHEST, 0, step=0.5, label=f"Direction {i}")
               for i in sliders},
        },
        "arithmetic": {
            "expression": gr.Textbox(
                "0,1,2 - 3,4,5 + 6,7,8", label="Seeds, a space before each sign"
            ),
        },
        "walk": {
            "seeds": gr.Textbox("0-3", label="Seeds to pass"),
            "path": gr.Radio(["spherical", "straight"], value="spherical", label="Path"),
            "loop": gr.Checkbox(True, label="Back to the first"),
            "frames": gr.Slider(2, 100, 30, step=1, label="Steps from one to the next"),
        },
    }  # fmt: skip
    scale = max(1, SHOWN // max(generator.image_size))

    def answer(name: str, values: tuple[Any, ...]) -> tuple[str, str]:
        """Return the file of one command and the line that makes it again."""
        settings = dict(zip(forms[name], values, strict=True))
        if name == "pick":
            moves = [(i, settings.pop(i)) for i in sliders]
            settings["move"] = ",".join(f"{i}:{by:g}" for i, by in moves if by) or None
        output = folder / (f"{name}.webp" if name == "walk" else f"{name}.png")
        try:
            return str(output), make_file(name, output, scale=scale, **settings)
        except SettingsError as error:
            message = html.escape(str(error), quote=False)
            raise gr.Error(message, print_exception=False) from None

    with gr.Blocks(title="DCGAN", analytics_enabled=False, delete_cache=(OLD, OLD)) as page:
        for name, form in forms.items():
            with gr.Tab(name.capitalize()), gr.Row():
                with gr.Column(min_width=240):
                    inputs = [component.render() for component in form.values()]
                    button = gr.Button("Generate", variant="primary")
                with gr.Column(scale=3):
                    line = gr.Code(
                        language="shell", label="the command that makes this", lines=1,
                        interactive=False, show_line_numbers=False,
                    )  # fmt: skip
                    # Without the button that uploads an image to share it.
                    image = gr.Image(
                        type="filepath", show_label=False, interactive=False,
                        buttons=["download", "fullscreen"],
                    )  # fmt: skip
            changes = [one.submit if isinstance(one, gr.Textbox) else one.change for one in inputs]
            gr.on(
                [page.load, button.click, *changes],
                lambda *values, name=name: answer(name, values), inputs, [image, line],
                trigger_mode="always_last", show_progress="minimal", api_name=name,
            )  # fmt: skip
    return page
