"""Pictures of a volume, made of `tapefs.archive.portrait`: a page, and an insert for its case.

`page.html`, `page.css` and `page.js` are put together into one file that needs nothing else.
"""
