"""The `meet` command. Subcommands are found through entry points; heavy imports happen only inside them."""
