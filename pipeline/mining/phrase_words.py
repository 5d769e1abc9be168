"""Closed lists of English words that the rules of edition 4 ask for; drawn up by class of word, not from captions."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


BEINGS = _words(
    "adult adults animal animals athlete athletes babies baby bear bears bicyclist bicyclists biker bikers bird "
    "birds boy boys brother brothers cat cats child children climber climbers couple cow cows crowd cyclist "
    "cyclists dancer dancers dog dogs duck ducks elephant elephants family father female females friend friends "
    "gentleman gentlemen girl girls goat goats greyhound greyhounds guy guys hiker hikers horse horses infant "
    "kid kids kitten kittens ladies lady male males man men mother motorcyclist musician musicians officer "
    "officers parent parents people person persons player players policeman policemen puppies puppy rider "
    "riders runner runners sheep singer sister sisters skateboarder skateboarders skater skaters skier skiers "
    "snowboarder snowboarders soldier soldiers student students surfer surfers swimmer swimmers teen teenager "
    "teenagers teens toddler toddlers woman women worker workers"
)
"""People and animals: what acts in a caption."""
ACTIONS = _words(
    "barks bends bikes bites bounces carries catches chases chews claps climbs crawls crosses crouches dances "
    "dashes digs dives drags eats enjoys falls fetches flies flips floats gallops gazes gets gives glides goes "
    "grabs hangs hikes hits holds hugs jogs jumps kicks kisses kneels laughs lays leads leans leaps leaves "
    "licks lies lifts looks lunges makes marches moves naps nips paces pedals peeks peers performs picks plays "
    "poses pounces pulls pushes races raises reaches reads rests rides rolls runs sails shakes shoots sings "
    "sits skates skis slams sleeps slides smiles sniffs speaks speeds splashes sprints squats stands stares "
    "steps stops strolls surfs swims swings takes talks tests throws touches tries trots tumbles turns wades "
    "waits walks wants watches waves wears works wrestles writes"
)
"""Verbs of captions in the third person, some of which are plural nouns elsewhere ("dog walks" is not "dog toys")."""
GERUND_THINGS = _words(
    "awning bearing bedding being bling bracing building bunting carving casing casting ceiling cladding "
    "clearing clipping clothing coating covering crossing darling decking drawing dressing duckling dumpling "
    "dwelling earring edging engraving etching fencing filling fledgling flooring frosting furnishing "
    "garnishing gosling grating greeting hatchling herring housing icing inning king landing lettering "
    "lightning lining marking matting molding mooring moulding nestling netting offering offspring opening "
    "outbuilding outcropping padding painting paling paneling panelling parking paving piercing piping planking "
    "plumbing pudding railing rigging ring roofing sapling scaffolding seating seedling shelving setting shilling "
    "shirring sibling siding sling spring starling sterling sting stitching stocking string stuffing swing "
    "tattooing ting topping trimming tubing upholstering viking warning webbing wing wiring wrapping writing "
    "yearling"
)
"""Words in -ing that name a thing; others name what somebody does ("skating")."""
PLACE_ADVERBS = _words(
    "abroad ahead airborne alone alongside apart aside away downhill downstairs headfirst indoor indoors inside "
    "nearby offstage onstage outdoor outdoors outside overhead sideways together underfoot underneath underwater "
    "uphill upright upstairs"
)
"""Adverbs that the tagger takes for nouns or adjectives at the end of a chunk."""
COLOURS = _words(
    "amber aqua beige black blond blonde blue brindle brown colored coloured cream crimson dark gold golden "
    "gray green grey khaki lavender light lime magenta maroon mauve multicolored navy ochre orange pale pink "
    "purple red rust scarlet silver spotted striped tan teal turquoise violet white yellow"
)
AREAS = _words(
    "area areas background backgrounds environment environments location locations place places region regions "
    "setting settings step surrounding surroundings top tops"
)
"""Words that name a thing once an adjective or a noun says which ("a grassy area", "a pink top")."""
RELATIVE = _words(
    "bottom different far first fourth last left lower many other own particular present right same second several "
    "such third top upper various"
)
"""Adjectives that do not say what kind of thing it is."""
BACKS = _words("back backs")
CLAUSES = _words(
    "after although as because before if since so though unless until when whenever while whilst whist"
)
"""Words that begin a clause which says something about the action and not about the thing."""
NEAR = _words("behind beside by near past to toward towards of")
"""Prepositions after which "with" belongs to the thing that was just named ("next to a boy with a drum")."""
TRANSITIVE = _words(
    "carrying catching chasing eating holding kicking pulling pushing riding throwing touching wearing"
)
"""Words in -ing behind a noun whose object follows."""
SAME_FORM = _words("become come cut hit hurt let put run set")
"""Past participles that are also the plain form of the verb."""
MATERIALS = _words(
    "brick bronze butter cardboard cement chrome concrete cotton dirt fur glass grass gold iron jelly leather metal "
    "paper pepper plastic rock rubber salt silver steel stone straw tile track wood wool"
)
"""Nouns that tell with another noun of what one thing consists ("a glass and steel door")."""
LOTS = _words("lot lots")
"""Words that name a thing once a noun stands before them ("a parking lot")."""
PRONOUNS = _words(
    "anybody anyone anything everybody everyone everything nobody nothing somebody someone something"
)
