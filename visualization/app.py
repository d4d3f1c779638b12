"""A local web page over explore.py's commands: seeds and directions, arithmetic, walks.

Needs Gradio, an optional requirement. The page asks no other machine for anything.
"""

from __future__ import annotations

import errno
import html
import os
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from torch import nn

from training.signals import Stopped, noted
from utils import SettingsError

PORTS = range(7860, 7960)  # Gradio's
SLIDERS = 6
FARTHEST = 6  # that one moves; beyond, images hardly change any more
SHOWN = 192  # pixels, to which smaller images are enlarged
OLD = 3600  # seconds, after which an image is deleted
STYLE = "img { image-rendering: pixelated }"

Draw = Callable[..., str]  # see `build`


def check_address(host: str, port: int | None = None) -> None:
    """Refuse what is no address of this machine, or has no free port: `port`, or one of `PORTS`.

    Raises:
        SettingsError: saying why.
    """
    for candidate in [port] if port else PORTS:
        try:
            for name in {host, "127.0.0.1"}:  # Gradio asks for both
                socket.create_server((name, candidate)).close()
            return
        except OSError as error:
            reason = (error.strerror or str(error)).partition(" (while")[0]
            if error.errno != errno.EADDRINUSE:
                break
    raise SettingsError(f"--host {host} --port {candidate}: {reason}")


def serve(
    draw: Draw, generator: nn.Module, host: str, port: int | None = None, browser: bool = False
) -> None:
    """Serve the page at an address of this machine, and open a `browser` with it.

    Without `port` at the first that is free, which Gradio finds as it takes it: two pages that
    start at once get two.

    Raises:
        SettingsError: Gradio is too old, or another program has taken the port.
        Stopped: by Ctrl-C and its kind, as any service is.
    """
    if int(gr.__version__.partition(".")[0]) < 6:
        raise SettingsError("serve needs Gradio 6 or newer: pip install --upgrade gradio")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # Gradio asks itself whether it runs, which is nothing to ask a proxy.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "no_proxy": "*"}
        os.environ["GRADIO_TEMP_DIR"] = os.path.join(folder, "shown")
        page = build(draw, generator, Path(folder))
        try:
            page.launch(
                server_name=host, server_port=port, inbrowser=browser, share=False, ssr_mode=False,
                prevent_thread_lock=True, quiet=True, css=STYLE, footer_links=[],
            )  # fmt: skip
        except OSError as error:
            raise SettingsError(f"--host {host}: {error}") from error
        print(f"Serving {page.local_url} until Ctrl-C", flush=True)
        with noted() as signal_that_came:
            while not (number := signal_that_came()):
                time.sleep(0.2)
    raise Stopped(number, "the page is closed")


def build(draw: Draw, generator: nn.Module, folder: Path) -> gr.Blocks:
    """Lay the page out: a tab for each of three commands, whose name its API has too.

    Args:
        draw: takes a command's name, a file to draw into and the command's settings, and gives the
            line that draws the same. Its SettingsErrors are shown on the page.
        generator: that draws.
        folder: takes the newest image of each tab.
    """
    scale = max(1, SHOWN // max(generator.image_size))

    def answer(path: str, ask: Callable[..., dict[str, Any]]) -> Callable[..., tuple[str, str]]:
        def drawn(*values: Any) -> tuple[str, str]:
            output = folder / path
            try:
                line = draw(output.stem, output, scale=scale, **ask(*values))
            except SettingsError as error:
                message = html.escape(str(error), quote=False)
                raise gr.Error(message, print_exception=False) from None
            return str(output), line

        return drawn

    def tab(
        title: str,
        path: str,
        form: Callable[[], Sequence[gr.components.Component]],
        ask: Callable[..., dict[str, Any]],
    ) -> None:
        """Add a tab with a command's form on the left, and its image and line on the right."""
        with gr.Tab(title), gr.Row():
            with gr.Column(min_width=240):
                inputs = form()
                button = gr.Button("Draw", variant="primary")
            with gr.Column(scale=3):
                line = gr.Code(
                    language="shell", label="draws the same", lines=1, interactive=False,
                    show_line_numbers=False,
                )  # fmt: skip
                # Without the button that uploads an image to share it.
                image = gr.Image(
                    type="filepath", show_label=False, interactive=False,
                    buttons=["download", "fullscreen"],
                )  # fmt: skip
        changes = [one.submit if isinstance(one, gr.Textbox) else one.change for one in inputs]
        gr.on(
            [page.load, button.click, *changes], answer(path, ask), inputs, [image, line],
            trigger_mode="always_last", show_progress="minimal", api_name=Path(path).stem,
        )  # fmt: skip

    with gr.Blocks(title="DCGAN", analytics_enabled=False, delete_cache=(OLD, OLD)) as page:
        tab(
            "Seeds", "pick.png",
            lambda: [
                gr.Textbox("0-24", label="Seeds, such as 5 or 0-24,100"),
                *(
                    gr.Slider(-FARTHEST, FARTHEST, 0, step=0.5, label=f"Direction {i + 1}")
                    for i in range(min(SLIDERS, generator.z_dim))
                ),
            ],
            lambda seeds, *moves: {"seeds": seeds, "move": _written(moves)},
        )  # fmt: skip
        tab(
            "Arithmetic", "arithmetic.png",
            lambda: [gr.Textbox("0,1,2 - 3,4,5 + 6,7,8", label="Seeds, a space before each sign")],
            lambda expression: {"expression": expression},
        )  # fmt: skip
        tab(
            "Walk", "walk.webp",
            lambda: [
                gr.Textbox("0-3", label="Seeds to pass"),
                gr.Radio(["spherical", "straight"], value="spherical", label="Path"),
                gr.Checkbox(True, label="Back to the first"),
                gr.Slider(2, 100, 30, step=1, label="Steps from one to the next"),
            ],
            lambda seeds, path, loop, frames: {
                "seeds": seeds, "path": path, "loop": loop, "frames": int(frames)
            },
        )  # fmt: skip
    return page


def _written(moves: Sequence[float]) -> str | None:
    """Write how far the sliders were moved as --move takes it; None if they were not."""
    return ",".join(f"{i}:{distance:g}" for i, distance in enumerate(moves, 1) if distance) or None
