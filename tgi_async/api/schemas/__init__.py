"""Bodies of requests and replies. Unknown fields of a request are ignored, as in TGI."""
