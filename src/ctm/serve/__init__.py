"""A service that makes pictures over HTTP. It needs the extra `serve`, but for `ctm.serve.scheduler`."""
