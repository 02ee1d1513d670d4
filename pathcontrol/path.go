package pathcontrol

// A Path is one way to the other side, end to end.
type Path struct {
	// Name identifies the path; Use is called with it. It is not empty, and
	// no two paths of a Controller have the same.
	Name string
	// Preference orders the paths: the lowest is preferred, as with the MX
	// records of mail. Among equals the score decides, and where that says
	// nothing the order in Controller.Paths.
	Preference int
	// Probers all have to answer, each by itself: the far end, and something
	// behind it, so that a far end that has lost its own network is no path.
	// At least one is needed. A Controller does not close them.
	Probers []Prober
}
