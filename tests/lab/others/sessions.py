"""Another program's sessions: opens them, runs statements in each, says "ready", and stays.

Standard input: {"connect": arguments of psycopg2.connect, "count", "statements", "last"}. `last` is run after
"ready" in every session, each in a thread of its own; a session that is not let in is left out.
"""

import json
import sys
import threading

import psycopg2

told = json.load(sys.stdin)
sessions = []
for _ in range(told["count"]):
    try:
        connection = psycopg2.connect(**told["connect"])
    except psycopg2.OperationalError as error:
        print(f"not let in: {error}".splitlines()[0], flush=True)
        break
    connection.autocommit = True  # BEGIN is among the statements where it is wanted
    cursor = connection.cursor()
    for statement in told["statements"]:
        cursor.execute(statement)
    sessions.append((connection, cursor))
print(f"ready {len(sessions)}", flush=True)
if told["last"]:
    for _, cursor in sessions:
        threading.Thread(target=cursor.execute, args=(told["last"],), daemon=True).start()
threading.Event().wait()
