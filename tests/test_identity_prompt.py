"""People in prompts: whose tokens take the place of which word, and when they count."""

import pytest
import torch
from likeness.face import adapters
from likeness.face.adapters import Evidence, arc2face, consistentid
from likeness.face.adapters._net import Net
from likeness.face.errors import BadInput
from likeness.face.prompt import LENGTH, length_of, repeated, without_trigger
from likeness.tests import tiny_adapters as tiny

BEGIN, END = 998, 999


class Clip:
    """One token a word or sign, and an encoder that looks each up: what stands where can be read off the answer."""

    def __init__(self, width, names="lg", pad=END):
        self.width, self.names, self.pad = width, names, pad
        self.words = {}
        self.table = torch.randn(1000, width, generator=torch.Generator().manual_seed(0))

    def ids(self, text):
        signs = text.replace(",", " , ").replace(":", " : ").split()
        return [self.words.setdefault(word, len(self.words)) for word in signs]

    def tokenize(self, text, return_word_ids=False):
        ids, chunks = self.ids(text), []
        for start in range(0, max(len(ids), 1), LENGTH - 2):
            part = ids[start : start + LENGTH - 2]
            row = [BEGIN, *part, END]
            chunks.append([(one, 1.0) for one in row + [self.pad] * (LENGTH - len(row))])
        return dict.fromkeys(self.names, chunks)

    def encode_from_tokens(self, tokens, return_pooled=False):
        rows = [self.table[[one for one, _ in chunk]] for chunk in tokens[self.names[0]]]
        embedded = torch.cat(rows)[None]
        return (embedded, embedded.mean(1)) if return_pooled else embedded

    def word(self, embedded, place):
        """The token that stands at a place of an answer; None if it is none of the vocabulary."""
        found = (self.table - embedded[0, place]).abs().amax(1).min(0)
        return int(found.indices) if found.values < 1e-5 else None


def load(tmp_path, name, **sizes):
    return adapters.load(tiny.write(tmp_path / f"{name}.safetensors", tiny.make(name, **sizes), half=False), name)


def random(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_trigger_stands_once_behind_a_word():
    assert without_trigger("a photo of a man img, laughing", "img") == ("a photo of a man", ", laughing")
    for wrong in ("a photo of a man", "img", "a man img and a woman img", "a man, img", "a mandarin-img"):
        with pytest.raises(BadInput, match="trigger word 'img'"):
            without_trigger(wrong, "img")


def test_a_repeated_token_pushes_the_others_back_and_never_over_the_end():
    clip = Clip(8, pad=0)
    words = " ".join(f"w{n}" for n in range(73))
    for text in ("a man laughing", words):
        tokens = clip.tokenize(text)
        before, after = tokens["l"][0], repeated(tokens, {"l": 2, "g": 2}, 4)["l"][0]
        assert len(after) == LENGTH and after[2:6] == [before[2]] * 4
        kept = min(length_of(before) + 3, LENGTH)
        assert after[6 : kept - 1] == before[3 : kept - 4] and after[kept - 1][0] == END
        assert all(token[0] == 0 for token in after[kept:])


@pytest.mark.parametrize("name, each", [("photomaker", 1), ("photomaker-v2", 2)])
@pytest.mark.parametrize("pictures", [1, 3])
def test_photomaker_changes_the_words_token_and_no_other(tmp_path, name, each, pictures):
    adapter, clip = load(tmp_path, name), Clip(128)
    known = Evidence(random(pictures, 24), pixels=random(pictures, 3, 224, 224))
    positive, negative = adapter.text.write(clip, "a photo of a man img, laughing", "ugly", known, 0.2, "img")
    early, late = positive
    # Each goes with its own pooled answer: the late one's is of the prompt whose word is repeated.
    torch.testing.assert_close(early.pooled, early.text.mean(1))
    assert late.pooled is not None and (torch.equal(late.pooled, early.pooled) == (pictures * each == 1))
    assert (early.start, early.end, late.start, late.end) == (0.0, 0.2, 0.2, 1.0)
    words = [clip.words[w] for w in ("a", "photo", "of", "a", "man", ",", "laughing")]
    assert [clip.word(early.text, n + 1) for n in range(7)] == words
    count = pictures * each
    found = [clip.word(late.text, n + 1) for n in range(6 + count)]
    assert found == [*words[:4], *[None] * count, *words[5:]]
    assert clip.word(negative[0].text, 1) == clip.words["ugly"] and len(negative) == 1


def test_photomaker_from_the_beginning_is_one_conditioning(tmp_path):
    adapter, known = load(tmp_path, "photomaker"), Evidence(random(1, 0), pixels=random(1, 3, 224, 224))
    positive, _ = adapter.text.write(Clip(128), "a man img", "", known, 0.0, "img")
    assert [(one.start, one.end) for one in positive] == [(0.0, 1.0)]


def test_photomaker_shows_who_is_in_the_pictures(tmp_path):
    adapter = load(tmp_path, "photomaker-v2")

    def shown(pixels, vectors):
        known = Evidence(vectors, pixels=pixels)
        return adapter.text.write(Clip(128), "a man img", "", known, 0.0, "img")[0][0].text

    one = shown(random(1, 3, 224, 224), random(1, 24))
    assert not torch.equal(one, shown(random(1, 3, 224, 224, seed=2), random(1, 24)))
    assert not torch.equal(one, shown(random(1, 3, 224, 224), random(1, 24, seed=2)))


def test_photomaker_is_refused_where_it_cannot_be_read(tmp_path):
    writer, known = load(tmp_path, "photomaker").text, Evidence(random(1, 0), pixels=random(1, 3, 224, 224))
    with pytest.raises(BadInput, match="needs the CLIP that reads it"):
        writer.write(None, "a man img", "", known, 0.0, "img")
    with pytest.raises(BadInput, match="tokens of 128 numbers, but this CLIP's text has 64"):
        writer.write(Clip(64), "a man img", "", known, 0.0, "img")
    far = " ".join(["very"] * 80) + " old man img"
    with pytest.raises(BadInput, match="too far back"):
        writer.write(Clip(128), far, "", known, 0.0, "img")


def test_consistentids_caption_is_the_authors():
    """As their functions make it of their standing sentence: reordered by part, each phrase with a comma."""
    clip, every = Clip(64, "l"), [part for part, _ in consistentid.REGIONS]
    text, places = consistentid.captioned(clip, "a man", every)
    assert text == "a manDetail:The person has one face, two ears, two eyes, one nose, and one mouth,"
    assert [clip.ids(text)[place - 1] for place in places] == [
        clip.words[word] for word in ("face", "ears", "eyes", "nose", "mouth")
    ]
    text, _ = consistentid.captioned(clip, "a man", every, consistentid.SDXL)
    assert text == "a man; Detail:The person has one face, two ears, two eyes, one nose, and a mouth,"
    assert consistentid.captioned(clip, "", ["eyes", "nose"])[0] == "Detail:two eyes, one nose,"


def test_consistentid_hands_the_parts_over_by_label():
    """The words stand in another order, so eyes and ears change places: it was trained that way."""
    assert [part for part, _ in consistentid.REGIONS] == ["face", "eyes", "ears", "nose", "mouth"]


def test_consistentid_fuses_each_word_with_the_part_in_its_place_and_the_opposite_with_nothing(tmp_path):
    adapter, clip = load(tmp_path, "consistentid", seen=64), Clip(64, "l")
    parts = ("face", "eyes", "ears", "nose", "mouth")
    shown = {part: random(5, 64, seed=n) for n, part in enumerate(parts)}
    known = Evidence(random(1, 24), unseen=random(1, 5, 64, seed=9), regions=dict(reversed(shown.items())))
    (early, late), (against,) = adapter.text.write(clip, "a man", "ugly", known, 0.6, "")
    net = Net(adapter.text.tensors)
    chosen = torch.zeros(LENGTH, dtype=torch.bool)
    chosen[consistentid.captioned(clip, "a man", parts)[1]] = True
    tokens = consistentid.parts(net, torch.stack([shown[part] for part in parts]))
    torch.testing.assert_close(late.text, consistentid.merged(net, early.text, chosen, tokens))
    plain = clip.encode_from_tokens(clip.tokenize("ugly"))
    nothing = consistentid.parts(net, known.unseen.expand(5, -1, -1))
    torch.testing.assert_close(against.text, consistentid.merged(net, plain, chosen, nothing))


def test_consistentid_of_sdxl_goes_without_caption_and_opposite_at_first(tmp_path):
    sizes = {"widths": tiny.SDXL, "context": 128, "seen": 64}
    adapter, clip = load(tmp_path, "consistentid", **sizes), Clip(128)
    assert adapter.text.version is consistentid.SDXL and adapter.project.shortcut
    known = Evidence(random(1, 24), unseen=random(1, 5, 64), regions={"nose": random(5, 64)})
    (early, late), (plain, against) = adapter.text.write(clip, "a man", "ugly", known, 0.6, "")
    assert (early.start, early.end, late.start, late.end) == (plain.start, plain.end, against.start, against.end)
    assert (early.end, late.start, late.end) == (0.6, 0.6, 1.0)
    assert [clip.word(early.text, n) for n in (1, 2, 3)] == [clip.words["a"], clip.words["man"], END]
    assert clip.word(plain.text, 1) == clip.words["ugly"]
    changed = [n for n in range(LENGTH) if clip.word(against.text, n) is None]
    assert changed == [n for n in range(LENGTH) if clip.word(late.text, n) is None] and len(changed) == 1


@pytest.mark.parametrize("seen", [("face", "eyes", "ears", "nose", "mouth"), ("eyes", "nose"), ("mouth",)])
def test_consistentid_changes_the_words_of_the_parts_that_were_seen(tmp_path, seen):
    adapter, clip = load(tmp_path, "consistentid", seen=64), Clip(64, "l")
    known = Evidence(random(1, 24), unseen=random(1, 5, 64), regions={part: random(5, 64) for part in seen})
    positive, negative = adapter.text.write(clip, "a man laughing", "ugly", known, 0.6, "")
    early, late = positive
    text = "a man laughing" + "Detail:" + " ".join(f"{p}," for p, part in consistentid.CAPTION if part in seen)
    ids = clip.ids(text)
    assert [clip.word(early.text, n + 1) for n in range(len(ids))] == ids
    named = {clip.words[part] for part in seen}
    assert [clip.word(late.text, n + 1) for n in range(len(ids))] == [None if i in named else i for i in ids]
    assert (early.end, late.start) == (0.6, 0.6)
    assert clip.word(negative[0].text, 1) == clip.words["ugly"]


def test_consistentid_without_parts_is_the_plain_prompt(tmp_path):
    adapter, clip = load(tmp_path, "consistentid", seen=64), Clip(64, "l")
    known = Evidence(random(1, 24), unseen=random(1, 5, 64))
    positive, _ = adapter.text.write(clip, "a man", "", known, 0.6, "")
    assert len(positive) == 1 and (positive[0].start, positive[0].end) == (0.0, 1.0)


def test_consistentid_puts_the_caption_first_where_the_prompt_is_long():
    clip = Clip(64, "l")
    text, places = consistentid.captioned(clip, " ".join(["very"] * 74), ["eyes", "nose"])
    # The authors count a marker behind each phrase: 65 words, "veryDetail : two eyes , one nose ," are 8, two markers
    # and both ends make 77.
    assert consistentid.captioned(clip, " ".join(["very"] * 66), ["eyes", "nose"])[0].startswith("very")
    assert consistentid.captioned(clip, " ".join(["very"] * 67), ["eyes", "nose"])[0].startswith("Detail")
    assert text.startswith("Detail:two eyes,") and " Caption:very" in text and max(places) < LENGTH
    assert [clip.ids(text)[place - 1] for place in places] == [clip.words["eyes"], clip.words["nose"]]


def test_arc2faces_prompt_is_the_face_alone(tmp_path):
    writer = load(tmp_path, "arc2face", context=512).text
    who = Evidence(torch.nn.functional.normalize(random(1, 512)))
    (positive,), (negative,) = writer.write(None, "", "", who, 0.0, "")
    assert positive.text.shape == negative.text.shape == (1, LENGTH, 512)
    other = Evidence(torch.nn.functional.normalize(random(1, 512, seed=2)))
    (again,), (against,) = writer.write(None, "", "", other, 0.0, "")
    place = 1 + arc2face.SENTENCE.index(arc2face.ID)
    # Causal: what stands before the face does not see it.
    assert torch.equal(positive.text[:, :place], again.text[:, :place])
    assert not torch.equal(positive.text[:, place], again.text[:, place]) and torch.equal(negative.text, against.text)
    with pytest.raises(BadInput, match="takes no prompt"):
        writer.write(None, "a man", "", who, 0.0, "")
    with pytest.raises(BadInput, match="takes one vector; the identity has 2"):
        writer.write(None, "", "", Evidence(random(2, 512)), 0.0, "")
