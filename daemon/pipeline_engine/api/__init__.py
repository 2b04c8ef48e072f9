"""The HTTP API: what is asked, who answers, and how it goes over the wire."""
