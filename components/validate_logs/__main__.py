"""Stage `validate_logs`: `data/snapshot` in; `data/clean`, `data/quarantine` and `reports/validation*` out."""

from mrse.component import run
from mrse.validation.run import validate_logs

if __name__ == "__main__":
    run("validate_logs", validate_logs)
