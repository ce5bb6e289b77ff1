VERSION = "0.1.0"  # of the service that it is made for
