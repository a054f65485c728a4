"""Texts that people may type or import, and that must come back as text: markup, script, bidi signs, and odd characters."""

HOSTILE = {
    "script": "<script>window.hit = 1</script>",
    "textarea": "</textarea><script>window.hit = 2</script>",
    "attribute": '"><img src=x onerror="window.hit = 3">',
    "single quotes": "' autofocus onfocus='window.hit = 4",
    "svg": "<svg/onload=window.hit=5>",
    "address": "javascript:window.hit=6",
    "template": "{{ 7 * 7 }} {% raw %} ${7*7} %(name)s %s {0}",
    "frame": "</div></form><iframe srcdoc='<script>parent.hit=7</script>'>",
    "style": "<!-- --><style>*{display:none}</style>",
    "title": "</title></head><body onload=window.hit=8>",
    "entities": "&lt;b&gt; &amp; &#x3C; &nbsp;",
    "bidi": "\u202eright to left\u202c \u2066isolate\u2069\u2069\u2069 \u202d\u200f\u061c",
    "marks": "Z\u0336\u0363\u036f\u0489a\u0334\u0351l\u0337\u030bg\u0321o\u0335 \u200b\u200d\ufeff\u00ad",
    "one long word": "Donaudampfschifffahrtsgesellschaft" * 50,
    "emoji": "👩🏽‍🚀🏳️‍🌈👨‍👩‍👧‍👦🦜",
    "scripts": "اختبار 测试 テスト परीक्षण ทดสอบ",
    "NUL": "a\0b",
    "line ends": "one\r\ntwo\rthree\n\n\tfour\u2028five",
    "controls": "bell\x07 escape\x1b[31m back\x08 delete\x7f",
}
