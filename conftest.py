"""What nbval compares: printed and shown text; progress lines on stderr differ from run to run, HTML repeats the text."""


def pytest_collectstart(collector):
    if collector.path.suffix == ".ipynb":
        collector.skip_compare += ("stderr", "text/html")
