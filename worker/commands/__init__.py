"""Commands ``fedhypevae worker`` and ``fedhypevae agent``; ``worker.cli`` names them."""
