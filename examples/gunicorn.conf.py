# gunicorn reads this file by itself when it is started in this folder: gunicorn bottle_shop:app

bind = "127.0.0.1:8000"

# More than one process, so that a session must live in MongoDB to be found by the next request.
workers = 2

# Browsers open connections that they may never use; a worker without threads would wait on them.
threads = 4

# Several gunicorns of one user would otherwise share one control socket in the home directory.
control_socket_disable = True
