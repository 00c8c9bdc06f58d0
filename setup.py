__import__("setuptools").setup()  # everything is in setup.cfg
