"""The command `softserve`. Where its packages are not installed, it says how to get them."""

import sys


def main() -> None:
    try:
        from app.cli.main import cli
    except ModuleNotFoundError as error:
        sys.exit(
            f"softserve: the command line needs {error.name}, which is not there: pip install "
            "'softserve[cli]', or 'softserve[cpu]' or 'softserve[cuda]' for the server too"
        )
    cli()


if __name__ == "__main__":
    main()
