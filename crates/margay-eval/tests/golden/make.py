"""Writes {suite}.json beside itself: small hand-made files of each benchmark, answers with every quirk, and the figures
that the published scoring code gives them, transcribed here line by line.

    python make.py

Sources: LLaVA at c121f04 (llava/eval/eval_pope.py, eval_science_qa.py, eval_textvqa.py, m4c_evaluator.py,
scripts/convert_gqa_for_eval.py); MME's eval_tool/calculation.py; GQA's eval.py; OpenCompass's tools/eval_mmbench.py;
training/nano/evaluate.py. Only the standard library is used.
"""

import base64
import csv
import io
import json
import random
import re
import string
from collections import Counter, defaultdict
from pathlib import Path

HERE = Path(__file__).parent


# --- m4c_evaluator.py -------------------------------------------------------------------------------------------------

# As pairs "key value", in the order of the original.
CONTRACTIONS = dict(
    line.split()
    for line in """
aint ain't
arent aren't
cant can't
couldve could've
couldnt couldn't
couldn'tve couldn't've
couldnt've couldn't've
didnt didn't
doesnt doesn't
dont don't
hadnt hadn't
hadnt've hadn't've
hadn'tve hadn't've
hasnt hasn't
havent haven't
hed he'd
hed've he'd've
he'dve he'd've
hes he's
howd how'd
howll how'll
hows how's
Id've I'd've
I'dve I'd've
Im I'm
Ive I've
isnt isn't
itd it'd
itd've it'd've
it'dve it'd've
itll it'll
let's let's
maam ma'am
mightnt mightn't
mightnt've mightn't've
mightn'tve mightn't've
mightve might've
mustnt mustn't
mustve must've
neednt needn't
notve not've
oclock o'clock
oughtnt oughtn't
ow's'at 'ow's'at
'ows'at 'ow's'at
'ow'sat 'ow's'at
shant shan't
shed've she'd've
she'dve she'd've
she's she's
shouldve should've
shouldnt shouldn't
shouldnt've shouldn't've
shouldn'tve shouldn't've
somebody'd somebodyd
somebodyd've somebody'd've
somebody'dve somebody'd've
somebodyll somebody'll
somebodys somebody's
someoned someone'd
someoned've someone'd've
someone'dve someone'd've
someonell someone'll
someones someone's
somethingd something'd
somethingd've something'd've
something'dve something'd've
somethingll something'll
thats that's
thered there'd
thered've there'd've
there'dve there'd've
therere there're
theres there's
theyd they'd
theyd've they'd've
they'dve they'd've
theyll they'll
theyre they're
theyve they've
twas 'twas
wasnt wasn't
wed've we'd've
we'dve we'd've
weve we've
werent weren't
whatll what'll
whatre what're
whats what's
whatve what've
whens when's
whered where'd
wheres where's
whereve where've
whod who'd
whod've who'd've
who'dve who'd've
wholl who'll
whos who's
whove who've
whyll why'll
whyre why're
whys why's
wont won't
wouldve would've
wouldnt wouldn't
wouldnt've wouldn't've
wouldn'tve wouldn't've
yall y'all
yall'll y'all'll
y'allll y'all'll
yall'd've y'all'd've
y'alld've y'all'd've
y'all'dve y'all'd've
youd you'd
youd've you'd've
you'dve you'd've
youll you'll
youre you're
youve you've
""".strip().splitlines()
)
NUMBER_MAP = dict(
    none="0", zero="0", one="1", two="2", three="3", four="4", five="5", six="6", seven="7", eight="8", nine="9", ten="10"
)
ARTICLES = ["a", "an", "the"]
PERIOD_STRIP = re.compile(r"(?!<=\d)(\.)(?!\d)")
COMMA_STRIP = re.compile(r"(?<=\d)(\,)+(?=\d)")
PUNCTUATIONS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]


def word_tokenize(word):
    word = word.lower()
    word = word.replace(",", "").replace("?", "").replace("'s", " 's")
    return word.strip()


def process_punctuation(in_text):
    out_text = in_text
    for p in PUNCTUATIONS:
        if (p + " " in in_text or " " + p in in_text) or (re.search(COMMA_STRIP, in_text) is not None):
            out_text = out_text.replace(p, "")
        else:
            out_text = out_text.replace(p, " ")
    return PERIOD_STRIP.sub("", out_text, count=int(re.UNICODE))


def process_digit_article(in_text):
    out_text = []
    for word in in_text.lower().split():
        word = NUMBER_MAP.setdefault(word, word)
        if word not in ARTICLES:
            out_text.append(word)
    for word_id, word in enumerate(out_text):
        if word in CONTRACTIONS:
            out_text[word_id] = CONTRACTIONS[word]
    return " ".join(out_text)


def processed(item):
    item = word_tokenize(item)
    item = item.replace("\n", " ").replace("\t", " ").strip()
    item = process_punctuation(item)
    return process_digit_article(item)


def compute_answer_scores(raw_answers):
    answers = [processed(a) for a in raw_answers]
    assert len(answers) == 10
    gt_answers = list(enumerate(answers))
    unique_answer_scores = {}
    for unique_answer in set(answers):
        accs = []
        for gt_answer in gt_answers:
            other_answers = [item for item in gt_answers if item != gt_answer]
            matching_answers = [item for item in other_answers if item[1] == unique_answer]
            accs.append(min(1, float(len(matching_answers)) / 3))
        unique_answer_scores[unique_answer] = sum(accs) / len(accs)
    return unique_answer_scores


def textvqa(rng):
    pieces = ["the", "Nokia", "a", "coca-cola", "7", "3.5", "1,000", "10:30", "u.s.a.", "dont", "what's", "whats", "two", "none",
              "ten", "(left)", "- right", "yes!", "x/y", "somebody'd", "Im", "'twas", "\"quoted\"", "é", "Ä", "a.b", ".5", "and", "[1]",
              "50%", "$5", "@home", "y'all'dve", "\n", "\t", ",", "?", ". . .", "STOP", "stop.", "no. 7", "7.", "let's", "_", "\\"]
    phrase = lambda: " ".join(rng.choice(pieces) for _ in range(rng.randint(1, 4)))  # noqa: E731
    data, answers, prompts, scores = [], {}, [], []
    end = "Answer the question using a single word or phrase."
    for i in range(120):
        pool = [phrase() for _ in range(rng.randint(1, 5))]
        people = [rng.choice(pool) for _ in range(10)]
        entry = dict(question=f"What is Written at {i}?", image_id=f"img{i // 2}", question_id=34602 + i, answers=people, set_name="val")
        data.append(entry)
        said = rng.choice(pool)
        how = rng.random()
        if how < 0.3:
            said = said.upper()
        elif how < 0.5:
            said = processed(said)
        elif how < 0.6:
            said = phrase()
        answers[str(entry["question_id"])] = said.strip()
        tokens = "Reference OCR token: A, B, c"
        text = [f"{entry['question']}\n{tokens}\n{end}", f"{tokens}\n{entry['question']}\n{end}"][i % 2]
        prompts.append(dict(question_id=entry["image_id"], image=entry["image_id"] + ".jpg", text=text, category="default"))
        scores.append(compute_answer_scores(people).get(processed(answers[str(entry["question_id"])]), 0.0))
    files = {
        "TextVQA_0.5.1_val.json": json.dumps({"dataset_type": "val", "data": data}),
        "llava_textvqa_val_v051_ocr.jsonl": "".join(json.dumps(p) + "\n" for p in prompts),
    }
    first = f"What is Written at 0?\nReference OCR token: A, B, c\n{end}"
    return files, answers, 100.0 * sum(scores) / len(scores), {}, {"34602": first}


# --- eval_pope.py -----------------------------------------------------------------------------------------------------


def eval_pope(texts, labels):
    preds = []
    for text in texts:
        if text.find(".") != -1:
            text = text.split(".")[0]
        words = text.replace(",", "").split(" ")
        preds.append(0 if "No" in words or "not" in words or "no" in words else 1)
    labels = [0 if label == "no" else 1 for label in labels]
    tp = fp = tn = fn = 0
    for pred, label in zip(preds, labels):
        if pred == 1 and label == 1:
            tp += 1
        elif pred == 1 and label == 0:
            fp += 1
        elif pred == 0 and label == 0:
            tn += 1
        elif pred == 0 and label == 1:
            fn += 1
    precision, recall = float(tp) / float(tp + fp), float(tp) / float(tp + fn)
    return {
        "F1": 100 * 2 * precision * recall / (precision + recall),
        "accuracy": 100 * (tp + tn) / (tp + tn + fp + fn),
        "precision": 100 * precision,
        "recall": 100 * recall,
        "yes": 100 * preds.count(1) / len(preds),
    }


def pope(rng):
    said = ["Yes", "No", "yes", "no", "No.", "Yes.", "NO", "There is not a cat.", "No, there is none", "Yes. No", "not", "None", "no!",
            "I see one, no doubt", "It isn't there", "Yes, there is. There is no dog.", "", "No\n", "nothing"]
    files, answers, rows = {}, {}, {}
    for category in ["random", "popular", "adversarial"]:
        lines, labels, texts = [], [], []
        for i in range(60):
            label = rng.choice(["yes", "no"])
            image = f"COCO_val2014_{i // 6:012}.jpg"
            text = f"Is there a {rng.choice(['cat', 'dog', 'car'])} in the image?"
            lines.append(dict(question_id=i + 1, image=image, text=text, label=label))
            answer = rng.choice(said).strip() if rng.random() < 0.5 else ("Yes" if label == "yes" else "No")
            answers[f"{category}/{i + 1}"] = answer
            labels.append(label)
            texts.append(answer)
        files[f"coco/coco_pope_{category}.json"] = "".join(json.dumps(line) + "\n" for line in lines)
        rows[category] = eval_pope(texts, labels)
    first = json.loads(files["coco/coco_pope_random.json"].splitlines()[0])["text"]
    prompts = {"random/1": first + "\nAnswer the question using a single word or phrase."}
    return files, answers, sum(r["F1"] for r in rows.values()) / 3, rows, prompts


# --- convert_gqa_for_eval.py, eval.py of GQA --------------------------------------------------------------------------


def gqa(rng):
    words = ["yes", "no", "left", "right", "red", "man", "on the shelf"]
    questions, answers, right = {}, {}, defaultdict(list)
    for i in range(150):
        structural = rng.choice(["query", "verify", "choose", "logical", "compare"])
        semantic = rng.choice(["obj", "attr", "rel", "global", "cat"])
        answer = rng.choice(words)
        key = f"{201000000 + i}"
        questions[key] = dict(imageId=rng.choice(["n1", f"n{i}"]), question=f"Which one is {i}?", answer=answer, fullAnswer="x",
                              isBalanced=True, types=dict(structural=structural, semantic=semantic, detailed="d"), semantic=[])
        text = rng.choice([answer, answer.capitalize() + ".", answer.upper() + "...", answer + "!", " " + answer, rng.choice(words)]).strip()
        answers[key] = text
        # Conversion, then equality.
        hit = text.rstrip(".").lower() == answer
        for task in ["all", "open" if structural == "query" else "binary", f"structural {structural}", f"semantic {semantic}"]:
            right[task].append(hit)
    share = {task: 100 * sum(hits) / len(hits) for task, hits in right.items()}
    overall = share.pop("all")
    prompts = {"201000000": "Which one is 0?\nAnswer the question using a single word or phrase."}
    return {"testdev_balanced_questions.json": json.dumps(questions)}, answers, overall, {t: {"accuracy": v} for t, v in share.items()}, prompts


# --- eval_science_qa.py -----------------------------------------------------------------------------------------------

OPTIONS = ["A", "B", "C", "D", "E"]


def science_answer(pred_text):
    if pred_text in OPTIONS:
        return pred_text
    if len(pred_text) >= 3 and pred_text[0] in OPTIONS and pred_text[1:3] == ". ":
        return pred_text[0]
    res = re.compile(r"The answer is ([A-Z]).").findall(pred_text)
    return res[0] if len(res) == 1 else "FAILED"


def science_index(prediction, choices):
    return OPTIONS.index(prediction) if prediction in OPTIONS[: len(choices)] else -1


def scienceqa(rng):
    problems, ids, answers, hits = {}, [], {}, defaultdict(list)
    forms = ["{}", "{}.", "({})", "{}. because", "The answer is {}.", "The answer is {}", "The answer is {}. The answer is B.",
             "I think The answer is {}, clearly", "{}:", "{} ", "the answer is {}."]
    for i in range(140):
        choices = [f"choice  {j}" for j in range(rng.randint(2, 5))]
        answer = rng.randrange(len(choices))
        image = rng.choice(["image.png", None])
        subject = rng.choice(["natural science", "social science", "language science"])
        key = str(7 * i + 1)
        problems[key] = dict(question=f"Which is  number {i}?", choices=choices, answer=answer, hint=rng.choice(["", " ", "Look  here."]),
                             image=image, task="t", grade="grade3", subject=subject, topic="", category="", skill="", lecture="", solution="",
                             split="test")
        ids.append(key)
        letter = OPTIONS[answer] if rng.random() < 0.7 else rng.choice("ABCDEFX")
        answers[key] = rng.choice(forms).format(letter).strip()
        hit = science_index(science_answer(answers[key]), choices) == answer
        for task in ["all", "with a picture" if image else "without a picture", f"subject {subject}"]:
            hits[task].append(hit)
    # One that is in no split, and must not count.
    problems["2"] = dict(problems["1"], split="train")
    splits = dict(train=["2"], val=[], test=ids, minitrain=[], minival=[])
    share = {task: 100 * sum(h) / len(h) for task, h in hits.items()}
    # scripts/convert_sqa_to_llava_base_prompt.py, CQM-A.
    p = problems["1"]
    context = " ".join([p["hint"], ""]).strip() or "N/A"
    choice = " ".join(f"({OPTIONS[i]}) {c}" for i, c in enumerate(p["choices"]))
    text = f"Context: {context}\nQuestion: {p['question']}\nOptions: {choice}\n".replace("  ", " ").strip()
    prompts = {"1": text + "\nAnswer with the option's letter from the given choices directly."}
    files = {"problems.json": json.dumps(problems), "pid_splits.json": json.dumps(splits)}
    return files, answers, share["with a picture"], {t: {"accuracy": v} for t, v in share.items()}, prompts


# --- calculation.py ---------------------------------------------------------------------------------------------------

MME = {
    "Perception": ["existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"],
    "Cognition": ["commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"],
}


def parse_pred_ans(pred_ans):
    if pred_ans in ["yes", "no"]:
        return pred_ans
    prefix_pred_ans = pred_ans[:4]
    if "yes" in prefix_pred_ans:
        return "yes"
    if "no" in prefix_pred_ans:
        return "no"
    return "other"


def mme(rng):
    said = ["Yes", "No", "yes.", "No.", "y", "n", "It is yes", "not at all", "noyes", "yes no", "Maybe", "", "Yes, it is.", "1 no"]
    files, answers, rows, prompts = {}, {}, {}, {}
    totals = {}
    for kind, tasks in MME.items():
        scores = 0.0
        for task in tasks:
            hits, plus, pictures = [], 0, rng.randint(3, 6)
            # Half of the tasks have sub-folders.
            texts, images = (task, task) if task in ("count", "OCR", "existence", "code_reasoning") else (f"{task}/questions_answers_YN", f"{task}/images")
            for i in range(pictures):
                name, ending = f"{i:04}", rng.choice(["jpg", "png"])
                files[f"MME_Benchmark_release_version/{images}/{name}.{ending}"] = ""
                lines, right = [], 0
                for j, gt in enumerate(["Yes", "No"]):
                    question = f"Is this {task} {j} of {i}? Please answer yes or no."
                    lines.append(f"{question}\t{gt}")
                    answer = gt if rng.random() < 0.6 else rng.choice(said).strip()
                    answers[f"{task}/{name}.{ending}/{j}"] = answer
                    prompts[f"{task}/{name}.{ending}/{j}"] = (
                        f"Is this {task} {j} of {i}?\nAnswer the question using a single word or phrase."
                    )
                    hit = gt.lower() == parse_pred_ans(answer.lower())
                    hits.append(hit)
                    right += hit
                plus += right == 2
                files[f"MME_Benchmark_release_version/{texts}/{name}.txt"] = "\n".join(lines) + rng.choice(["", "\n"])
            acc, acc_plus = sum(hits) / len(hits), plus / pictures
            rows[task] = {"score": 100 * acc + 100 * acc_plus, "acc": 100 * acc, "acc+": 100 * acc_plus}
            scores += rows[task]["score"]
        totals[kind] = scores
        rows[kind] = {"score": scores}
    return files, answers, totals["Perception"], rows, prompts


# --- eval_mmbench.py --------------------------------------------------------------------------------------------------


def can_infer_option(answer, num_choice=5):
    choices = string.ascii_uppercase[:num_choice]

    def count(splits, choices="ABCD", prefix="", suffix=""):
        return sum(prefix + c + suffix in splits for c in choices)

    splits = [x.strip() for x in answer.split()]
    if count(splits, choices) == 1:
        for ch in choices:
            if "A" in splits and len(splits) > 3:
                break
            if ch in splits:
                return ch
    tups = [("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ")."), (":", ""), (":", ","), (":", "."),
            (":", ")"), (":", ").")]
    for tup in tups:
        if count(splits, choices, prefix=tup[0], suffix=tup[1]) == 1:
            for ch in choices:
                if tup[0] + ch + tup[1] in splits:
                    return ch
    return False


def can_infer_text(answer, choices):
    answer = answer.lower()
    cands = [k for k, text in choices.items() if str(text).lower() in answer]
    return cands[0] if len(cands) == 1 else False


def mmbench(rng):
    names = ["a red fox", "a dog", "two dogs", "the sea", "North", "a tab\tin it", 'a "quote"', "two\nlines"]
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category", "comment", "split"]
    rows, answers, prompts = [], {}, {}
    picture = base64.b64encode(bytes(range(90))).decode()
    forms = ["{}", "{}.", "({})", "{}) {t}", "A {t} is there to see", "It is :{}.", "{t}", "I see {t}, {}", "{}, {t}", "Answer: {}:", "B or {}", "E", "?", "{t}!"]
    for q in range(40):
        texts = rng.sample(names, rng.choice([2, 3, 4, 4]))
        correct = rng.choice(texts)
        for turn in range(len(texts)):
            turned = texts[turn:] + texts[:turn]
            index = q + turn * 1_000_000
            row = dict.fromkeys(columns, "")
            row.update(dict(zip("ABCD", turned)))
            row.update(index=index, question=f"What is in picture {q}?", hint=rng.choice(["", "nan", "Look\nclosely."]) if turn == 0 else rows[-turn]["hint"],
                       answer="ABCD"[turned.index(correct)], category=rng.choice(["ocr", "spatial"]) if turn == 0 else rows[-1]["category"],
                       image=picture if turn == 0 else str(q), source="s", split="dev")
            rows.append(row)
            letter = row["answer"] if rng.random() < 0.85 else rng.choice("ABCDE")
            form = "{}" if rng.random() < 0.6 else rng.choice(forms)
            answers[str(index)] = form.format(letter, t=correct).strip()
            hint = "" if row["hint"] in ("", "nan") else row["hint"] + "\n"
            options = "".join(f"\n{k}. {row[k]}" for k in "ABCD" if row[k] != "")
            prompts[str(index)] = f"{hint}{row['question']}{options}\nAnswer with the option's letter from the given choices directly."
    out = io.StringIO()
    table = csv.DictWriter(out, columns, delimiter="\t", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    each, groups, category = [], defaultdict(lambda: True), {}
    for row in rows:
        choices = {ch: row[ch] for ch in "ABCD" if row[ch] != ""}
        said = answers[str(row["index"])]
        hit = (can_infer_option(said) or can_infer_text(said, choices)) == row["answer"]
        each.append(hit)
        main = int(row["index"] % 1e6)
        groups[main] &= hit
        category[main] = row["category"]
    by = defaultdict(list)
    for main, hit in groups.items():
        by[f"circular {category[main]}"].append(hit)
    shares = {task: {"accuracy": 100 * sum(hits) / len(hits)} for task, hits in by.items()}
    shares["every row by itself (vanilla)"] = {"accuracy": 100 * sum(each) / len(each)}
    return {"mmbench_dev_20230712.tsv": out.getvalue()}, answers, 100 * sum(groups.values()) / len(groups), shares, prompts


# --- training/nano/evaluate.py ----------------------------------------------------------------------------------------


def nano(rng):
    lines, answers = [], {}
    right, n, chance, truths = Counter(), Counter(), Counter(), defaultdict(Counter)
    for i in range(120):
        kind = rng.choice(["read", "count", "exist_yes", "shape"])
        truth = rng.choice({"read": ["OPEN", "TAXI"], "count": ["1", "2"], "exist_yes": ["Yes"], "shape": ["star"]}[kind])
        odds = {"shape": 0.5, "exist_yes": 0.5}.get(kind, 0.0)
        lines.append(dict(id=f"{i:05}.0", image=f"{i // 4:05}.png", kind=kind, question=f"Q{i}?", answer=truth, chance=odds))
        said = rng.choice([truth, truth, truth + ".", truth.lower(), "No"])
        answers[f"{i:05}.0"] = said
        right[kind] += said == truth
        n[kind] += 1
        chance[kind] += odds
        truths[kind][truth] += 1

    def no_skill(kind):
        if kind.startswith("exist"):
            return 0.5
        return max(chance[kind], truths[kind].most_common(1)[0][1]) / n[kind]

    rows = {k: {"exact": 100 * right[k] / n[k], "no skill": 100 * no_skill(k)} for k in n}
    files = {"questions.jsonl": "".join(json.dumps(line) + "\n" for line in lines)}
    return files, answers, 100 * sum(right.values()) / sum(n.values()), rows, {"00000.0": "Q0?"}


def main():
    for make in (nano, gqa, scienceqa, textvqa, pope, mme, mmbench):
        files, answers, headline, rows, prompts = make(random.Random(make.__name__))
        case = dict(files=files, answers=answers, headline=headline, rows=rows, prompts=prompts)
        path = HERE / f"{make.__name__}.json"
        path.write_text(json.dumps(case, indent=0, ensure_ascii=False) + "\n")
        print(f"{make.__name__:10} {len(answers):4} answers  {headline:.4f}  {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
