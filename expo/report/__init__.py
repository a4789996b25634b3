"""Finished runs for people: read (reading), compared (comparison), shown as one page (page) or in W&B."""
