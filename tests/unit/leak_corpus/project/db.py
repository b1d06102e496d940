"""The class that owns the pool; its callers live in another file."""


class Database:
    def take_connection(self):
        return self.pool.getconn()

    def hand_in(self, conn):
        self.pool.putconn(conn)
