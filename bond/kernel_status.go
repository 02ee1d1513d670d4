package bond

import "log/slog"

// KernelStatus is what a [Kernel] is at a moment.
type KernelStatus struct {
	Name string `json:"name"`
	Mode string `json:"mode"`
	// Up says that the bond has a carrier: a member is up.
	Up bool `json:"up"`
	// Active is the active member, in modes that have one. Empty means none.
	Active string `json:"active,omitempty"`
	// Adopted says that somebody else has made the bond, so that it stays.
	Adopted bool `json:"adopted,omitempty"`
	// Members are those that the bond has, in the order of Members, and then those
	// of an adopted bond that nobody has named.
	Members []MemberStatus `json:"members"`
	// Problem is why it is not as it should be. Empty means that it is.
	Problem string `json:"problem,omitempty"`
}

// MemberStatus is one member of a [KernelStatus].
type MemberStatus struct {
	Name string `json:"name"`
	// Up says that the driver uses it, or would.
	Up bool `json:"up"`
	// Failures is how often the driver has found it down.
	Failures int `json:"failures"`
}

// Status returns what the kernel says of the bond now.
func (k *Kernel) Status() KernelStatus {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := KernelStatus{Name: k.name(), Mode: k.Mode.String(), Members: []MemberStatus{}}
	if k.driver == nil {
		s.Problem = errNotUp.Error()
		return s
	}
	err := k.driver.status(&s)
	if k.err != nil {
		err = k.err
	}
	if err != nil {
		s.Problem = err.Error()
	}
	return s
}

// Active returns the active member; empty if there is none, as long as no member
// is up, or always in a mode that uses several.
func (k *Kernel) Active() (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.driver == nil {
		return "", errNotUp
	}
	var s KernelStatus
	err := k.driver.status(&s)
	return s.Active, err
}

// Ready returns nil if at the last look all was as it should be, else why not.
func (k *Kernel) Ready() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.driver == nil {
		return errNotUp
	}
	return k.err
}

// SetMTU changes the MTU of the bond and its members, in bytes, to which Run keeps
// them from then on. The far side may tell it only when a link is up.
func (k *Kernel) SetMTU(n int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.driver == nil {
		return errNotUp
	}
	return k.driver.setMTU(n)
}

func (k *Kernel) name() string {
	if k.Name == "" {
		return defaultKernelName
	}
	return k.Name
}

func (k *Kernel) logger() *slog.Logger {
	if k.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return k.Logger
}
