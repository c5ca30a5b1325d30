"""One reward, one policy: what TRL calls as a reward, the trainings, and the alarm. Read `reward.py` first."""
