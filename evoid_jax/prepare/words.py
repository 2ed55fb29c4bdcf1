"""The words that prompts are made of: places with what is done there, cameras, styles.

Nobody is described: the reference photo says who it is. The light of a scene belongs to its place,
so that every style goes with every place.
"""

# Each place, and three things that a person does there.
PLACES = (
    (
        "in a small kitchen with copper pans on the wall",
        "stirs a pot and tastes the soup from a wooden spoon",
        "kneads dough on a floured table",
        "slices tomatoes and looks up to answer somebody",
    ),
    (
        "in a quiet library between tall shelves",
        "takes a book from a shelf and opens it",
        "reads and slowly turns a page",
        "whispers something and smiles",
    ),
    (
        "on a wide beach at low tide",
        "walks barefoot along the water",
        "lets dry sand run through both hands",
        "shades the eyes with one hand and looks out to sea",
    ),
    (
        "in a forest with sunlight falling through the leaves",
        "walks along a path and looks up into the trees",
        "kneels down and lifts a fallen leaf",
        "breathes in deeply with closed eyes, then opens them",
    ),
    (
        "on a crowded market street at noon",
        "picks an orange from a stall and smells it",
        "counts coins into a hand and says thanks",
        "walks through the crowd and greets a friend",
    ),
    (
        "in a carpenter's workshop full of tools",
        "planes a board and blows away the shavings",
        "puts on safety glasses and checks a joint",
        "drives in a nail and nods, content",
    ),
    (
        "at the window table of a corner café",
        "lifts a cup with both hands and takes a sip",
        "writes in a notebook and pauses to think",
        "laughs at a story that a friend has told",
    ),
    (
        "on the platform of an old railway station",
        "waits and glances at the clock",
        "waves to somebody on a departing train",
        "pulls a suitcase along and stops to look around",
    ),
    (
        "on a rooftop terrace above the city at dusk",
        "leans on the railing and looks over the roofs",
        "waters herbs in clay pots",
        "dances a few steps to music",
    ),
    (
        "in a park under fresh snow",
        "catches snowflakes on a glove",
        "forms a snowball and throws it",
        "winds a scarf around the neck and breathes out a small cloud",
    ),
    (
        "in a painter's studio with a skylight",
        "mixes two colours on a palette",
        "steps back from a canvas and tilts the head",
        "draws with charcoal in quick strokes",
    ),
    (
        "on a narrow mountain path above the clouds",
        "climbs with a backpack and stops to rest",
        "drinks from a bottle and wipes the forehead",
        "points at a far peak and speaks",
    ),
    (
        "in a greenhouse full of tomato plants",
        "ties up a plant and inspects its leaves",
        "carries a crate of seedlings along the rows",
        "bites into a ripe tomato and grins",
    ),
    (
        "at a desk in an office after dark",
        "types, then leans back and stretches",
        "explains a plan with both hands",
        "takes off the headphones and turns around",
    ),
    (
        "in a music room with a grand piano",
        "plays slow chords on the piano",
        "tunes a guitar and listens closely",
        "sings a few lines and sways with the melody",
    ),
    (
        "on the deck of a sailing boat",
        "holds the tiller and squints into the wind",
        "pulls in a rope hand over hand",
        "turns round and laughs as spray flies up",
    ),
    (
        "in a climbing gym with coloured holds",
        "chalks both hands and looks up the wall",
        "skips rope at a steady pace",
        "catches breath and shakes out the arms",
    ),
    (
        "on a rainy street at night, among neon signs and puddles",
        "opens an umbrella and walks on",
        "hurries under an awning and shakes off the rain",
        "stops and looks into a lit shop window",
    ),
    (
        "in a living room lit by a fireplace",
        "sinks into an armchair and opens a letter",
        "lays a log on the fire and watches the sparks",
        "strokes a small dog that sits close by",
    ),
    (
        "in a wheat field before a thunderstorm",
        "walks with one hand brushing over the ears",
        "holds on to a straw hat in the wind",
        "stands still and listens to far thunder",
    ),
    (
        "in a walled garden in full bloom",
        "cuts roses and lays them in a basket",
        "bends over a flower and smells it",
        "swings gently on a wooden swing",
    ),
    (
        "in the high hall of a museum",
        "studies a marble statue and walks around it",
        "looks through a leaflet, then up at the ceiling",
        "sits down on a bench and rests the chin on one hand",
    ),
    (
        "on a path along a canal in autumn",
        "rides a bicycle slowly towards the camera",
        "feeds the ducks from a paper bag",
        "jogs at an easy pace under yellow trees",
    ),
    (
        "in the front seat of a parked vintage car",
        "adjusts the mirror and glances into it",
        "winds down the window and talks to somebody outside",
        "drums on the steering wheel to a song",
    ),
)

# What a person does anywhere.
ANYWHERE = (
    "turns from profile to the camera and smiles",
    "looks straight ahead, then slowly looks down",
    "nods, thinks for a moment and shakes the head",
    "talks to the camera with lively gestures",
    "looks over one shoulder as if called by name",
    "raises both eyebrows in surprise",
    "bursts out laughing and looks away",
    "blinks against the light and smiles",
    "grows serious and looks into the distance",
    "tilts the head to one side and listens",
    "waves at the camera with a wide grin",
    "takes a deep breath and relaxes",
)

CAMERAS = (
    "The camera stands still at eye level.",
    "The camera moves slowly closer to the face.",
    "The camera slowly draws back and shows more of the place.",
    "The camera circles half around the person.",
    "A hand-held camera follows every movement.",
    "The camera pans gently from left to right and stops at the face.",
    "A medium shot from the waist up, with a steady camera.",
    "A close-up of head and shoulders.",
    "The camera looks up slightly from below.",
    "The camera glides along beside the person.",
)

STYLES = (
    "Natural colours, with the look of a feature film.",
    "A documentary look with fine grain.",
    "Cool, muted colours and soft contrast.",
    "Warm colours and a shallow depth of field.",
    "The look of a home video, slightly faded.",
    "Black and white with rich greys.",
    "A crisp and detailed picture, as of a modern cinema camera.",
    "Pastel colours and soft edges, as in a fashion film.",
    "Strong contrast and deep shadows, as in a thriller.",
)
