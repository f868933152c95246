"""The live page: a run as a picture that follows it, and the JSON behind the picture.

glimpse    the daemon's state, handed from its loop to the threads that answer HTTP
history    what the journal tells of the rounds so far
guard      who may look
pages      paths to answers
page/      what the browser gets: HTML, CSS and JavaScript as they are
"""
