import subprocess
import sys
from types import ModuleType

import vitrail


def test_everything_public_is_declared_in_order() -> None:
    public = {
        name
        for name, member in vars(vitrail).items()
        if not name.startswith("_") and (not isinstance(member, ModuleType) or name == "aio")
    }

    assert set(vitrail.__all__) == public
    assert vitrail.__all__ == sorted(vitrail.__all__)


def test_importing_the_client_stays_light() -> None:
    script = "import sys, vitrail; print(*sorted({name.partition('.')[0] for name in sys.modules}))"

    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)

    assert not {"PIL", "rich", "tensorflow", "vitrail_server", "argparse"} & set(loaded.stdout.split())
