"""Passwords and tokens."""

import hashlib
import hmac
import secrets
import time

TOKEN_SECONDS = 24 * 3600

# token hash -> {"user_id", "username", "expires_at"}; what is missing here is looked up in the database.
_token_cache = {}


def hash_password(password, salt):
    """The 32 byte scrypt hash that public.users keeps."""
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1, dklen=32)


def verify_password(password, salt, expected):
    return hmac.compare_digest(hash_password(password, salt), expected)


def create_token(db, user):
    token = secrets.token_urlsafe(32)
    expires_at = time.time() + TOKEN_SECONDS
    db.save_token(_hash(token), user["user_id"], expires_at)
    _token_cache[_hash(token)] = {
        "user_id": user["user_id"],
        "username": user["username"],
        "expires_at": expires_at,
    }
    return token


def find_session(db, token):
    """The session of a token: {"user_id", "username", "expires_at"}, or None."""
    session = _token_cache.get(_hash(token)) or db.get_token(_hash(token))
    if session is None or session["expires_at"] < time.time():
        return None
    _token_cache[_hash(token)] = session
    return session


def revoke_token(db, token):
    _token_cache.pop(_hash(token), None)
    db.delete_token(_hash(token))


def cleanup_expired_tokens():
    # defect 27: clears the whole cache, so that every user's next request goes to the database.
    _token_cache.clear()


def _hash(token):
    return hashlib.sha256(token.encode()).hexdigest()
