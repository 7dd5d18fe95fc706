return function() return nil, "not yet", "ENOSYS" end
