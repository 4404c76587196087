"""The clauses of the contract that `check` tests, a file each; each file is also the page that `explain` prints."""
