import subprocess
import sys

CHECK = """
import gc
from app.engine.engine_import import make_local_engine
engine = make_local_engine()
assert gc.isenabled()
assert gc.get_freeze_count() > 10_000
engine.close()
"""


def test_the_engine_is_imported_and_the_collector_goes_on() -> None:
    subprocess.run([sys.executable, "-c", CHECK], check=True, timeout=200)
