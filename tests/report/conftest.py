"""Pages in Chromium, watched: nothing is requested but the page's own file, and nothing is reported as an error."""

import shutil
from pathlib import Path

import pytest

# WebGL by the processor: no test needs a graphics card.
SOFTWARE_GL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


@pytest.fixture(scope="module")
def browser(request):
    """Chromium, with WebGL for the test modules that set `WEBGL = True`."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    if not (path := next(filter(None, map(shutil.which, names)), None)):
        pytest.skip(f"no browser: none of {', '.join(names)} is on the path")
    graphics = SOFTWARE_GL if getattr(request.module, "WEBGL", False) else ("--disable-gpu",)
    arguments = ["--no-sandbox", "--disable-background-networking", *graphics]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, request, tmp_path: Path):
    """Opens HTML from a file, `webgl=False` as in a browser without; at the end fails on any error, and on any request
    other than for that file. Warnings count as errors, except those that WebGL gives by itself."""
    problems: list[str] = []
    pages = []
    serious = ("error",) if getattr(request.module, "WEBGL", False) else ("error", "warning")

    def opened(html: str, width: int = 1400, height: int = 900, *, webgl: bool = True):
        file = tmp_path / "page.html"
        file.write_text(html, encoding="utf-8")
        page = browser.new_page(viewport={"width": width, "height": height})
        if not webgl:
            page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
        page.on("console", lambda m: problems.append(m.text) if m.type in serious else None)
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.on("request", lambda r: None if r.url in (file.as_uri(), "data:,") else problems.append(r.url))
        page.goto(file.as_uri())
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert not problems
