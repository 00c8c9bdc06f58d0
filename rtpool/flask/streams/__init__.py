"""
Streams to browsers: Server-Sent Events of what a topic tells, one upstream join for any number of browsers.
"""
