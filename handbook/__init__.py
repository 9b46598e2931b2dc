"""The site in ``docs/``: pages that are made of the programs themselves when it is built.

``hook`` is what mkdocs calls. Nothing here is installed with the package.
"""
