"""`python -m meet_cli`: the `meet` command, where a launcher such as `torchrun` starts modules."""

from meet_cli.main import main

if __name__ == "__main__":
    main()
