"""The page `report.html`: one file that needs no network, drawn from a certificate and from evaluations.

`page` writes it; `contract`, `batch_sizes`, `plans` and `evaluations` turn records into the rows that `template.html`
shows; `plots` draws. Everything that a user named is escaped, and a content security policy lets nothing else run.
"""
