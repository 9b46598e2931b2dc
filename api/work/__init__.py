"""Work of clients: leased orders, by long poll or by claim."""
