"""Who may upload: upload tokens, and JWTs of the app's own identity provider.

authorizer    decides whether a request may upload, and for whom
token_path    the token in the path, which is taken out before anything is logged
jwts          checks JWTs
jwks          the public keys of the identity provider, fetched and cached
"""
