"""How the other pages borrow: from the pool of their process, which `main` puts here when it begins."""

take = give = None
