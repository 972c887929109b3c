"""One module a subcommand. Each imports click alone until it runs."""
