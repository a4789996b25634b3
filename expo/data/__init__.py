"""From rows to Problems: a file's rows (rows), a row's values (cells), a Problem of them (formats), and which problems
are trained on or held out, with the count of bad rows (reader, account)."""
