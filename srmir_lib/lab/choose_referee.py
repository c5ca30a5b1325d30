"""Who rules on answers: the exact referee where there is a town, else what there is for real answers."""

from pathlib import Path

from srmir_lib.data.harm_classifier import HarmClassifier
from srmir_lib.evaluation.harm_referee import HarmReferee
from srmir_lib.evaluation.referees import RefusalPhraseReferee
from srmir_lib.lab.referee import LabReferee


def choose_referee(
    facts: Path | None, classifier: Path | None, device: str = "auto"
) -> LabReferee | HarmReferee | RefusalPhraseReferee:
    """The lab's referee by the `facts` of 01's town; without them that of harm, whose classifier 01 left in a folder;
    with neither, refusal phrases."""
    if facts:
        return LabReferee(facts)
    return HarmReferee(HarmClassifier.load(classifier, device)) if classifier else RefusalPhraseReferee()
