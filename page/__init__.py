"""What `app.py` shows: uploads and sentences that are checked, answers, their pictures, HTML and files."""
