class ConnectError(Exception):
    """The game cannot be reached."""


class RequestError(Exception):
    def __init__(self, description, res):
        super().__init__(description)
        self.res = res
