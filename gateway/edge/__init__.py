"""HTTP/1.1 on the wire. The only rooms that know bytes of HTTP."""
