"""How a site comes in: a one-time code, the site's own token, an administrator's yes."""
